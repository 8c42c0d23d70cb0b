"""Videos as tensors [frames, 3, height, width] in [0, 1]: read, show in a notebook, save."""

import io
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read_video(path: str | Path, count: int = 0, size: tuple[int, int] | None = None) -> Tensor:
    """Frames of a folder of pictures (sorted by name), an animated picture or a video file.

    count: the first frames only, 0 for all. size: (height, width) to cut around the centre at
    that aspect ratio and to resize to. GIF, WebP and PNG are read by Pillow; other files by
    FFmpeg, which comes with PyAV.
    Raises FileNotFoundError for a missing path, ValueError for a folder without pictures or with
    pictures of different sizes (naming the first odd one) and for a file that is no video.
    """
    path = Path(path)
    if path.is_dir():
        frames = _folder(path, count)
    elif path.is_file():
        frames = _animation(path, count) or _film(path, count)
    else:
        raise FileNotFoundError(
            f"video: no file or folder {path}; give a folder of numbered pictures, a GIF or a video"
        )
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    return clip if size is None else fitted(clip, size)


def fitted(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a clip around its centre to the aspect ratio of size (height, width), and resize it."""
    height, width = clip.shape[2:]
    scale = min(height / size[0], width / size[1])
    part = [round(side * scale) for side in size]
    top, left = (height - part[0]) // 2, (width - part[1]) // 2
    clip = clip[:, :, top : top + part[0], left : left + part[1]]
    return F.interpolate(clip, tuple(size), mode="bilinear", antialias=True).clamp(0, 1)


def _folder(path: Path, count: int) -> list[np.ndarray]:
    from PIL import Image

    files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(f"{path} holds no pictures ({', '.join(PICTURES)})")
    frames = []
    for file in files[: count or None]:
        with Image.open(file) as image:
            frames.append(np.asarray(image.convert("RGB")))
        if frames[-1].shape != frames[0].shape:
            sizes = f"{frames[-1].shape[:2]}, the first picture {frames[0].shape[:2]}"
            raise ValueError(f"{file} has the size {sizes}; all must be equal")
    return frames


def _animation(path: Path, count: int) -> list[np.ndarray]:
    """Frames of a file that Pillow reads, else nothing."""
    from PIL import Image, ImageSequence, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            frames = [np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(image)]
    except UnidentifiedImageError:
        return []
    return frames[: count or None]


def _film(path: Path, count: int) -> list[np.ndarray]:
    """Frames of a video file, decoded by FFmpeg through PyAV."""
    import av

    try:
        with av.open(str(path)) as film:
            frames = islice(film.decode(video=0), count or None)
            return [frame.to_ndarray(format="rgb24") for frame in frames]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(
            f"video: {path} cannot be decoded ({error}); give a folder of numbered pictures"
        ) from None


def write_film(path: Path, frames: Tensor, fps: float = 8.0, zoom: int = 1) -> None:
    """Write frames [n, 3, h, w] as an MP4 (H.264), each pixel `zoom` times as large.

    Odd sides lose a row or column, as the format needs even ones. Raises ValueError for no frame.
    """
    import av

    if len(frames) == 0:
        raise ValueError("a video needs at least one frame")
    arrays = _pixels(frames, zoom)
    height, width = (side - side % 2 for side in arrays.shape[1:3])
    with av.open(str(path), "w", format="mp4") as film:
        stream = film.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "16"}
        for array in np.ascontiguousarray(arrays[:, :height, :width]):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        film.mux(stream.encode())


def _pixels(frames: Tensor, zoom: int) -> np.ndarray:
    """Bytes [n, zoom h, zoom w, 3] of frames [n, 3, h, w]."""
    large = frames.detach().cpu().repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    return (large.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def gif_bytes(frames: Tensor, fps: float = 8.0, zoom: int = 1) -> bytes:
    """A looping GIF of frames [n, 3, h, w], each pixel `zoom` times as large.

    Raises ValueError for no frame.
    """
    from PIL import Image

    if len(frames) == 0:
        raise ValueError("a video needs at least one frame")
    arrays = _pixels(frames, zoom)
    options = {"colors": 64, "dither": Image.Dither.NONE}
    first, *rest = [Image.fromarray(array).quantize(**options) for array in arrays]
    file = io.BytesIO()
    options = {"duration": round(1000 / fps), "loop": 0, "save_all": True, "append_images": rest}
    first.save(file, format="GIF", **options)
    return file.getvalue()


def side_by_side(clips: Mapping[str, Tensor], gap: int = 2) -> Tensor:
    """Clips of one shape in one row, with white between them."""
    first, *rest = clips.values()
    white = torch.ones_like(first[..., :gap])
    return torch.cat([first, *(part for clip in rest for part in (white, clip))], dim=3)


def show(
    clips: Mapping[str, Tensor], output: str = "", title: str = "", fps: float = 8.0, zoom: int = 2
) -> None:
    """Play clips side by side in the notebook; with `output`, write each as GIF and MP4 there.

    output: a folder, made if it is missing; "" writes nothing. title: the files' names start with
    it. zoom: on the page only.
    """
    from IPython.display import Image, display

    from helpers.files import write_atomic

    print(" | ".join(clips))
    film = side_by_side(clips)
    size = {"width": zoom * film.shape[3], "height": zoom * film.shape[2]}
    display(Image(gif_bytes(film, fps), format="gif", **size))
    if output:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        for name, clip in clips.items():
            file = folder / re.sub(r"[^\w-]+", "_", f"{title} {name}".strip())
            write_atomic(file.with_name(f"{file.name}.gif"), gif_bytes(clip, fps, zoom))
            film = partial(write_film, frames=clip, fps=fps, zoom=zoom)
            write_atomic(file.with_name(f"{file.name}.mp4"), film)
