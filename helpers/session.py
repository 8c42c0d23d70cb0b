"""start(): the first call of every notebook. Seeds, device, precision, plot style, one banner."""

from __future__ import annotations

import contextlib
import os
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Session:
    """What a run was started with; passed to everything that trains or measures."""

    seed: int
    device: torch.device
    precision: str
    data_root: Path | None

    def autocast(self) -> contextlib.AbstractContextManager:
        """bfloat16 autocast on this device when ``precision`` is "bf16", else nothing."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def generator(self, offset: int = 0) -> torch.Generator:
        """A fresh CPU generator seeded with ``seed + offset``: same stream on every device."""
        return torch.Generator().manual_seed(self.seed + offset)


def start(
    *,
    seed: int = 0,
    device: str = "auto",
    data_root: str | Path = "",
    precision: str = "fp32",
    banner: bool = True,
) -> Session:
    """Seed every generator, choose the device, set the plot style and say so in one line.

    Args:
        seed: seeds Python, NumPy and torch; at least 0.
        device: "auto" (CUDA, then Apple's MPS, then CPU) or any torch device string.
        data_root: folder with external data; "" reads the environment variable REPRO_DATA,
            and None in the session means that neither was given.
        precision: "fp32", or "bf16" for bfloat16 autocast.

    Raises:
        ValueError: negative seed, unknown precision, or a device this machine does not have.
        FileNotFoundError: ``data_root`` was given and is no folder.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    chosen = _device(device)
    root = _data_root(data_root)
    # cuBLAS reads this when it starts; without it deterministic algorithms raise on CUDA
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- libraries that draw from NumPy's global state
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    session = Session(seed, chosen, precision, root)
    if banner:
        from helpers import plots

        plots.use_style()
        print(describe(session))
    return session


def describe(session: Session) -> str:
    """The banner: versions, device, precision and seed, without any path."""
    hardware = (
        torch.cuda.get_device_name(session.device)
        if session.device.type == "cuda"
        else f"{torch.get_num_threads()} threads"
    )
    return (
        f"torch {torch.__version__.split('+')[0]} | {session.device.type} ({hardware}) | "
        f"{session.precision} | seed {session.seed}"
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f'device must be "auto" or one of this machine, got {name!r}: {reason}'
        ) from None
    return device


def _data_root(value: str | Path) -> Path | None:
    value = str(value) or os.environ.get("REPRO_DATA", "")
    if not value:
        return None
    root = Path(value).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"data_root: no folder {root}; give the folder that holds the data sets "
            "(its layout is in data/README.md)"
        )
    return root
