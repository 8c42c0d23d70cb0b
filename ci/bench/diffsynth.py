"""DiffSynth's hot path against the straightforward forms, as ratios measured in one run.

The device is a GPU when there is one; there the kernels go through torch.compile.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import bench, patch_fields, patch_kernels
from helpers.data import panning_photo
from helpers.flicker import count_remaps
from helpers.notebooks import load

D = load("diffsynth")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def unfolded_error(source: Tensor, target: Tensor, nnf: Tensor, size: int) -> Tensor:
    """Patch error by unfolding both images for every candidate."""
    b, _, h, w = source.shape
    there, here = (F.unfold(x, size, padding=size // 2) for x in (source, target))
    index = (nnf[..., 0] * w + nnf[..., 1]).view(b, 1, h * w).expand_as(there)
    return (there.gather(2, index) - here).square().sum(1).view(b, h, w)


def row_distance(source: Tensor, target: Tensor, nnf: Tensor, size: int) -> Callable[[], Tensor]:
    """Patch error with every image unfolded once, into rows that are gathered whole."""
    b, _, h, w = source.shape
    unfolded = (F.unfold(x, size, padding=size // 2) for x in (source, target))
    there, here = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in unfolded)
    start = torch.arange(b, device=source.device)[:, None, None] * (h * w)
    index = (start + nnf[..., 0] * w + nnf[..., 1]).flatten()

    def run() -> Tensor:
        parts = zip(index.split(4096), here.split(4096), strict=True)
        return torch.cat([(there[i] - x).square_().sum(1) for i, x in parts]).view(b, h, w)

    return run


def folded_vote(image: Tensor, nnf: Tensor, size: int) -> Tensor:
    """Voting by a loop over the offsets."""
    r, (b, c, h, w) = size // 2, image.shape
    wide = F.pad(nnf, (0, 0, r, r, r, r), value=-(h + w + size))
    total, count = torch.zeros_like(image), torch.zeros(b, 1, h, w, device=image.device)
    for dy in range(-r, r + 1):
        for dx in range(-r, r + 1):
            row, column = (wide[:, r + dy : r + dy + h, r + dx : r + dx + w, k] for k in (0, 1))
            row, column = row - dy, column - dx
            inside = ((row >= 0) & (row < h) & (column >= 0) & (column < w))[:, None]
            index = (row * w + column).clamp(0, h * w - 1).view(b, 1, -1).expand(b, c, -1)
            total += image.flatten(2).gather(2, index).view(b, c, h, w) * inside
            count += inside
    return total / count


def pairs(size: int, frames: int, window: int) -> tuple[Tensor, Tensor]:
    """Source and target images of all ordered pairs within a window of a pan."""
    clip = panning_photo(0, frames, (size, size), scale=1 if size > 100 else 2).to(DEVICE)
    steps = [(j, i) for i in range(frames) for j in range(frames) if 0 < abs(i - j) <= window]
    source, target = torch.tensor(steps).T
    return clip[source], clip[target]


def distances(size: int, frames: int, window: int, patch: int) -> None:
    source, target = pairs(size, frames, window)
    generator = torch.Generator().manual_seed(0)
    nnf = patch_fields.first_field("random", len(source), (size, size), generator).to(DEVICE)
    prepared = patch_kernels.patch_distance(source, target, patch)
    contenders = {
        "unfold at every candidate": lambda: unfolded_error(source, target, nnf, patch),
        "patches as rows": row_distance(source, target, nnf, patch),
        "offset by offset (ours)": lambda: prepared(nnf),
    }
    first, *rest = [fn() for fn in contenders.values()]
    for found in rest:
        torch.testing.assert_close(found, first, rtol=1e-4, atol=1e-4)
    title = f"patch errors of {len(source)} pairs, {size} x {size}, patch {patch}, {DEVICE.type}"
    bench.print_table(bench.compare(contenders, baseline="unfold at every candidate"), title)


def votes(size: int, patch: int) -> None:
    image = panning_photo(0, 1, (size, size), scale=1 if size > 100 else 2).to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    nnf = patch_fields.first_field("random", 1, (size, size), generator).to(DEVICE)
    contenders = {
        "offset by offset": lambda: folded_vote(image, nnf, patch),
        "all at once": lambda: D.vote(image, nnf, patch),
    }
    torch.testing.assert_close(*[fn() for fn in contenders.values()])
    rows = bench.compare(contenders, baseline="offset by offset")
    bench.print_table(rows, f"voting, {size} x {size}, patch {patch}, {DEVICE.type}")


def matching(size: int, frames: int, window: int) -> None:
    source, target = pairs(size, frames, window)
    seeds = [torch.Generator().manual_seed(k) for k in range(len(source))]
    with torch.inference_mode():
        contenders = {
            "pair by pair": lambda: [
                D.estimate_nnf(s[None], t[None], generator=g)
                for s, t, g in zip(source, target, seeds, strict=True)
            ],
            "all pairs at once": lambda: D.estimate_nnf(source, target, generator=seeds[0]),
        }
        together = contenders["all pairs at once"]()[0]
        alone = torch.cat([nnf for nnf, _ in contenders["pair by pair"]()])
        error = [D.patch_error(source, target, nnf, 5).mean().item() for nnf in (together, alone)]
        assert abs(error[0] / error[1] - 1) < 0.1  # other random numbers, equally good fields
        rows = bench.compare(contenders, baseline="pair by pair", rounds=3)
    bench.print_table(rows, f"fields of {len(source)} pairs, {size} x {size}, {DEVICE.type}")


def blending(size: int, frames: int, window: int) -> None:
    clip = panning_photo(0, frames, (size, size), (1, 1), 1).to(DEVICE)
    caches = {"slow": {}, "fast": {}}
    for mode, cache in caches.items():
        D.patch_blend(clip, clip, window, mode=mode, nnf_cache=cache, num_iter=1)
    contenders = {
        mode: lambda mode=mode: D.patch_blend(clip, clip, window, mode=mode, nnf_cache=caches[mode])
        for mode in caches
    }
    counts = {mode: count_remaps(D.blend_window, frames, window, mode) for mode in caches}
    rows = bench.compare(contenders, baseline="slow", rounds=3)
    title = (
        f"blend {frames} frames, {size} x {size}, window {window}, fields known; remaps {counts}"
    )
    bench.print_table(rows, title)


def main() -> None:
    """Print all tables; about a minute on two cores."""
    large = 192 if DEVICE.type == "cpu" else 288
    for size, patch in ((48, 5), (48, 9), (large, 5)):
        distances(size, 8 if size < 100 else 3, 3, patch)
    for size in (48, large):
        votes(size, 5)
    matching(48, 8, 3)
    blending(48, 32, 3)
    blending(48, 32, 15)


if __name__ == "__main__":
    main()
