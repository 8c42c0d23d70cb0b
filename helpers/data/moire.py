"""Moire: photographs shown on a screen and photographed again, gratings, and pairs on disk.

`screen_camera` follows the light: gamma, a screen of R|G|B stripes, a tilted camera, lens blur and
defocus, a Bayer sensor with noise, demosaicing, JPEG, and registration back onto the screen.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from helpers.data.digits import check_split
from helpers.data.photographs import photo

TRAIN = ("coffee", "rocket", "flower", "ihc", "hubble_deep_field", "retina", "motorcycle_left")
TEST = ("chelsea", "china", "astronaut")
SOURCES = ("screen", "gratings")
TEXELS = 3  # texels a screen pixel and axis; one stripe is one texel wide
MARGIN = 12  # screen pixels around the picture that the camera sees too
GAMMA = 2.2
SHARP, SOFT = (0.10, 0.18), 0.42  # lens blur in and out of focus: sigma in screen pixels


def check_clear(clear: Tensor) -> None:
    """Raise TypeError or ValueError unless clear is a float image (3, h, w) with values in 0..1."""
    if not torch.is_floating_point(clear):
        raise TypeError(
            f"clear must be floating point RGB in [0, 1], got {clear.dtype}; divide by 255 first"
        )
    if clear.dim() != 3 or clear.shape[0] != 3:
        raise ValueError(f"clear must have shape (3, h, w), got {tuple(clear.shape)}")
    low, high = clear.aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"clear must have values in [0, 1], got {low:.3g} to {high:.3g}")


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _screen(light: Tensor, row_duty: float = 0.8) -> Tensor:
    """Linear light (3, h, w) as glowing stripes (3, TEXELS h, TEXELS w) of the same mean."""
    stripes = torch.eye(3).repeat(1, light.shape[2])[:, None]  # channel c lights column c of three
    rows = torch.ones(TEXELS)
    rows[-1] = TEXELS * row_duty - (TEXELS - 1)  # the dark line between two rows of pixels
    rows = (rows / rows.mean()).repeat(light.shape[1])[None, :, None]
    cells = light.repeat_interleave(TEXELS, 1).repeat_interleave(TEXELS, 2)
    return cells * stripes * rows * TEXELS


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur (c, h, w) with sigma in texels."""
    radius = math.ceil(3 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=image.dtype)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).tolist()
    for dim in (1, 2):  # a sum of shifted slices: faster than a convolution of single channels
        size, padding = image.shape[dim], (0, 0, radius, radius) if dim == 1 else (radius, radius)
        padded = F.pad(image, padding, mode="replicate")
        image = sum(k * padded.narrow(dim, i, size) for i, k in enumerate(kernel))
    return image


def _view(height: int, width: int, pitch: float, generator: torch.Generator) -> Tensor:
    """Homography (3, 3) from sensor pixels to screen pixels, both from the centre."""
    scale = pitch * _uniform(generator, 0.9, 1.1)
    angle = math.radians(_uniform(generator, -5, 5))
    tilt = [_uniform(generator, -0.10, 0.10) / side for side in (width, height)]
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    flat = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    flat[2, :2] = scale * torch.tensor(tilt, dtype=torch.float64)
    return flat


def _project(homography: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images of points and their depth w relative to the centre."""
    h = homography.float()
    w = h[2, 0] * x + h[2, 1] * y + h[2, 2]
    u, v = ((h[i, 0] * x + h[i, 1] * y + h[i, 2]) / w for i in (0, 1))
    return u, v, w


def _sample(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear values (c, *shape) of image (c, h, w) at points in its pixels from its centre."""
    size = torch.tensor(image.shape[:0:-1])
    grid = torch.stack((x, y), -1) * 2 / size
    return F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=False)[0]


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """x and y (height, width) of pixel centres, measured from the middle."""
    y, x = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2,
        torch.arange(width) - (width - 1) / 2,
        indexing="ij",
    )
    return x, y


def _average(image: Tensor, x: Tensor, y: Tensor, view: Tensor, per_pixel: float) -> Tensor:
    """Mean of 2 x 2 samples in each pixel around (x, y), seen through `view`."""
    total = 0.0
    for dx, dy in ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25)):
        u, v, _ = _project(view, x + dx, y + dy)
        total = total + _sample(image, per_pixel * u, per_pixel * v)
    return total / 4


def bayer(image: Tensor) -> Tensor:
    """What an RGGB sensor keeps of image (3, h, w) with even sides: a mosaic (h, w)."""
    return (image * _sites(*image.shape[1:])).sum(0)


def _sites(height: int, width: int) -> Tensor:
    """Where an RGGB sensor measures red, green and blue: (3, height, width), 1 or 0."""
    cell = torch.tensor([[[1.0, 0], [0, 0]], [[0, 1], [1, 0]], [[0, 0], [0, 1]]])
    return cell.repeat(1, height // 2, width // 2)


# Malvar, He, Cutler, "High-quality linear interpolation for demosaicing", ICASSP 2004, figure 2:
# green at red and blue; a colour beside its sites in a row; in a column; and diagonally
DEMOSAIC = (
    torch.tensor(
        (
            (0, 0, -2, 0, 0, 0, 0, 4, 0, 0, -2, 4, 8, 4, -2, 0, 0, 4, 0, 0, 0, 0, -2, 0, 0),
            (0, 0, 1, 0, 0, 0, -2, 0, -2, 0, -2, 8, 10, 8, -2, 0, -2, 0, -2, 0, 0, 0, 1, 0, 0),
            (0, 0, -2, 0, 0, 0, -2, 8, -2, 0, 1, 0, 10, 0, 1, 0, -2, 8, -2, 0, 0, 0, -2, 0, 0),
            (0, 0, -3, 0, 0, 0, 4, 0, 4, 0, -3, 0, 12, 0, -3, 0, 4, 0, 4, 0, 0, 0, -3, 0, 0),
        )
    ).view(4, 1, 5, 5)
    / 16
)


def demosaic(mosaic: Tensor) -> Tensor:
    """Malvar's linear demosaicing of an RGGB mosaic (h, w) to (3, h, w)."""
    padded = F.pad(mosaic[None, None], (2, 2, 2, 2), mode="reflect")
    green, row, column, diagonal = F.conv2d(padded, DEMOSAIC)[0]
    red_site, _, blue_site = sites = _sites(*mosaic.shape)
    red_row = torch.zeros_like(mosaic)
    red_row[::2] = 1  # green sites here have red left and right and blue above and below
    along, across = torch.where(red_row > 0, row, column), torch.where(red_row > 0, column, row)
    red = torch.where(blue_site > 0, diagonal, along)
    blue = torch.where(red_site > 0, diagonal, across)
    return torch.where(sites > 0, mosaic, torch.stack((red, green, blue)))


def jpeg(image: Tensor, quality: int) -> Tensor:
    """image (3, h, w) in [0, 1] after JPEG compression."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return _read(file)


def screen_camera(clear: Tensor, generator: torch.Generator, pitch: float = 0.5) -> Tensor:
    """Photograph of a screen that shows clear (3, h, w), registered back: (3, h, w) in [0, 1].

    pitch: sensor pixels are about that many screen pixels wide. Near 0.5 the sites of one colour
    are one screen pixel apart and beat with its stripes. Everything else (angle, tilt, focus,
    noise, JPEG quality) is drawn from the generator (a CPU one).
    The tilt moves a part of the screen out of focus, where the stripes and the moire fade.
    """
    check_clear(clear)
    if not 0.2 <= pitch <= 1.5:
        raise ValueError(f"pitch is {pitch}; allowed: 0.2..1.5 screen pixels")
    height, width = clear.shape[1:]
    view = _view(height, width, pitch, generator)
    back = torch.linalg.inv(view) / torch.linalg.inv(view)[2, 2]
    shown = F.pad(clear[None].float(), (MARGIN,) * 4, mode="reflect")[0].clamp(0, 1)
    screen = _screen(shown**GAMMA)
    sharp, soft = (_blur(screen, TEXELS * sigma) for sigma in (_uniform(generator, *SHARP), SOFT))
    light = torch.lerp(sharp, soft, _defocus(*screen.shape[1:], generator))
    rows, columns = _sensor_size(height, width, back)
    seen = _average(light, *_grid(rows, columns), view, TEXELS)
    noise = torch.randn(rows, columns, generator=generator)
    mosaic = bayer(seen) * _uniform(generator, 0.98, 1.02)
    picture = demosaic(mosaic + noise * (2e-6 + 5e-5 * mosaic).sqrt())
    quality = int(torch.randint(85, 97, (), generator=generator))
    picture = jpeg(picture.clamp(0, 1) ** (1 / GAMMA), quality)
    return _average(picture, *_grid(height, width), back, 1.0).clamp(0, 1)


def _sensor_size(height: int, width: int, back: Tensor) -> tuple[int, int]:
    """Even numbers of rows and columns that see the whole picture and a few pixels around it."""
    x, y = torch.tensor([-1.0, 1, -1, 1]) * width / 2, torch.tensor([-1.0, -1, 1, 1]) * height / 2
    u, v, _ = _project(back, x, y)
    return tuple(2 * (math.ceil(float(side.abs().max())) + 4) for side in (v, u))


def _defocus(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Share of defocus blur (height, width), 0..1: the plane in focus cuts the screen in a line."""
    x, y = _grid(height, width)
    angle = _uniform(generator, 0, 2 * math.pi)
    distance = x / width * math.cos(angle) + y / height * math.sin(angle)
    distance = distance - _uniform(generator, -0.35, 0.35)
    return 1 - torch.exp(-((distance / _uniform(generator, 0.12, 0.3)) ** 2))


def _read(file) -> Tensor:
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def synthetic_moire(
    clear: Tensor, generator: torch.Generator, amplitude: float = 0.25
) -> tuple[Tensor, Tensor]:
    """Two coloured gratings on a part of clear (3, h, w): (moire (3, h, w), mask (h, w)).

    A stand-in without any optics, whose true mask is known. The generator alone decides mask and
    gratings: 0.06 to 0.23 cycles a pixel, bent, with a phase of its own for each colour.
    """
    check_clear(clear)
    if amplitude < 0:
        raise ValueError(f"amplitude is {amplitude}; allowed: 0 or more")
    size = clear.shape[1:]
    mask = torch.sigmoid(14 * (_smooth(4, size, generator) - 0.6))
    y, x = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float32) for side in size), indexing="ij"
    )
    waves = 0.0
    for _ in range(2):
        frequency = 2 * math.pi * _uniform(generator, 0.06, 0.23)
        angle = _uniform(generator, 0, math.pi)
        phase = frequency * (x * math.cos(angle) + y * math.sin(angle))
        phase = phase + 4 * _smooth(3, size, generator)
        shift = 2 * math.pi * torch.rand(3, 1, 1, generator=generator)
        waves = waves + torch.cos(phase + shift)
    moire = 0.7 * amplitude * mask * waves * (0.35 + 0.65 * clear)
    return (clear * (1 - 0.3 * mask) + moire).clamp(0, 1), mask


def _smooth(cells: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """A smooth random field (h, w), bicubic between cells x cells uniform numbers."""
    field = torch.rand(1, 1, cells, cells, generator=generator)
    return F.interpolate(field, tuple(size), mode="bicubic", align_corners=True)[0, 0]


def region(image: Tensor, size: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """A part of image (3, h, w), uint8, with the proportions of size, scaled to it, in [0, 1].

    The largest one in the middle, or a random one of 60 to 100 % of its side.
    """
    share = 1.0 if generator is None else _uniform(generator, 0.6, 1.0)
    scale = share * min(have / want for have, want in zip(image.shape[1:], size, strict=True))
    sides = [max(1, int(scale * side)) for side in size]
    free = [have - side for have, side in zip(image.shape[1:], sides, strict=True)]
    at = [0.5, 0.5] if generator is None else torch.rand(2, generator=generator).tolist()
    top, left = (round(a * f) for a, f in zip(at, free, strict=True))
    part = image[None, :, top : top + sides[0], left : left + sides[1]].float() / 255
    scaled = F.interpolate(part, tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return scaled[0].clamp(0, 1)


def rephotographed(
    split: str,
    *,
    views: int,
    size: Sequence[int] = (192, 288),
    seed: int = 0,
    source: str = "screen",
    pictures: Sequence[Tensor] = (),
) -> TensorDataset:
    """(moire, clear) pairs (3, h, w) of the embedded photographs, the same for the same arguments.

    views: each picture is taken so many times; a training view shows a random region of it.
    source: "screen" (`screen_camera`) or "gratings" (`synthetic_moire`).
    pictures: uint8 images (3, h, w) to take instead of the embedded ones.
    Training and test share no photograph.
    """
    check_split(split)
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}; allowed: {', '.join(SOURCES)}")
    if views < 1:
        raise ValueError(f"views is {views}; allowed: 1 or more")
    training = split == "train"
    generator = torch.Generator().manual_seed(2 * seed + training)
    chosen = pictures or [photo(name) for name in (TRAIN if training else TEST)]
    pairs = []
    for picture in [picture for picture in chosen for _ in range(views)]:
        clear = region(picture, size, generator if training else None)
        taken = screen_camera if source == "screen" else _grated
        pairs.append((taken(clear, generator), clear))
    return TensorDataset(*(torch.stack(images) for images in zip(*pairs, strict=True)))


def _grated(clear: Tensor, generator: torch.Generator) -> Tensor:
    return synthetic_moire(clear, generator)[0]
