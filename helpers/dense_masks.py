"""A mask branch that upsamples features to every point before it compares them with queries."""

import torch
from torch import nn

from helpers.point_networks import shared_mlp
from helpers.point_sets import three_nn_interpolate


class HighResolutionBranch(nn.Module):
    """Query-by-point logits (B, Q, N): features are upsampled to all points before the product."""

    def __init__(self, dim, first_channels, norm="layer"):
        super().__init__()
        self.from_backbone, self.from_rgb = nn.Linear(dim, dim), nn.Linear(3, dim)
        self.from_first, self.x_query = nn.Linear(first_channels, dim), nn.Linear(dim, dim)
        self.seeds = shared_mlp((2 * dim, 2 * dim, dim), norm)
        self.first, self.points = (shared_mlp((2 * dim, dim, dim), norm) for _ in range(2))

    def forward(self, out, points, rgb, room_of):
        """out: Grounded of B sentences about R rooms; points and rgb (R, N, 3); room_of (B,)."""
        feats = torch.cat([self.from_backbone(out.backbone), out.seed_feats.transpose(1, 2)], -1)
        feats, xyz = self.seeds(feats), out.seed_xyz
        fine = (out.first_xyz, self.from_first(out.first_feats), self.first)
        for finer, extra, mlp in (fine, (points, self.from_rgb(rgb), self.points)):
            finer, extra = finer[room_of], extra[room_of]
            feats = three_nn_interpolate(finer, xyz, feats.transpose(1, 2)).transpose(1, 2)
            feats, xyz = mlp(torch.cat([feats, extra], -1)), finer
        return self.x_query(out.query) @ feats.transpose(1, 2)
