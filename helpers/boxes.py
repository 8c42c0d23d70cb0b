"""Boxes in space as (centre, size), and point masks: overlaps and containment."""

import torch


def corners(boxes):
    """Lowest and highest corner (..., 3) of boxes (..., 6) = (cx, cy, cz, w, h, d)."""
    if boxes.shape[-1] != 6:
        raise ValueError(
            f"boxes have shape {tuple(boxes.shape)}; the last dimension must be 6: "
            "centre (cx, cy, cz) and size (w, h, d), not corners"
        )
    half = boxes[..., 3:].clamp_min(1e-6) / 2
    return boxes[..., :3] - half, boxes[..., :3] + half


def generalized_box_iou_3d(a, b):
    """GIoU and IoU (..., P, G) of boxes a (..., P, 6) and b (..., G, 6)."""
    (a_low, a_high), (b_low, b_high) = corners(a[..., :, None, :]), corners(b[..., None, :, :])
    volumes = (a_high - a_low).prod(-1) + (b_high - b_low).prod(-1)
    both = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp_min(0).prod(-1)
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(-1)
    union = volumes - both
    iou = both / union
    return iou - (hull - union) / hull, iou


def box_to_mask(points, box):
    """Which points (..., N, 3) lie in box (..., 6), its surface included: (..., N) bool."""
    low, high = corners(box[..., None, :])
    return ((points >= low) & (points <= high)).all(-1)


def mask_iou(a, b):
    """IoU of two point masks (N,) bool; of two empty ones 1."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0
