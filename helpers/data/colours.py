"""Colour words for furniture: naming a cloud's colour and giving it another one."""

from __future__ import annotations

import numpy as np

PALETTE = {
    "black": (0.10, 0.10, 0.11),
    "blue": (0.16, 0.30, 0.72),
    "brown": (0.45, 0.27, 0.14),
    "gray": (0.52, 0.52, 0.53),
    "green": (0.20, 0.55, 0.24),
    "red": (0.75, 0.13, 0.12),
    "white": (0.93, 0.92, 0.90),
    "yellow": (0.90, 0.76, 0.16),
}
COLOURS = tuple(PALETTE)


def hues(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value in [0, 1] of rgb [n, 3] in [0, 1]."""
    high, low = rgb.max(-1), rgb.min(-1)
    spread = np.maximum(high - low, 1e-6)
    r, g, b = np.moveaxis(rgb, -1, 0)
    hue = np.where(high == r, (g - b) / spread, np.where(high == g, 2 + (b - r) / spread, 0))
    hue = np.where((high == b) & (high != r) & (high != g), 4 + (r - g) / spread, hue)
    return 60 * hue % 360, (high - low) / np.maximum(high, 1e-6), high


def colour_index(rgb: np.ndarray) -> np.ndarray:
    """Index into COLOURS for each colour [n, 3], or -1 where none of the words is certain."""
    hue, saturation, value = hues(rgb)
    name = np.full(len(rgb), -1)

    def say(word: str, where: np.ndarray) -> None:
        name[where & (name < 0)] = COLOURS.index(word)

    say("black", value < 0.22)
    say("white", (saturation < 0.12) & (value > 0.82))
    say("gray", (saturation < 0.12) & (value > 0.3) & (value < 0.72))
    strong = saturation > 0.4
    warm = (hue > 12) & (hue < 45)
    say("brown", strong & warm & (value < 0.65))
    say("red", strong & ((hue < 12) | (hue > 345)) & (value > 0.4))
    say("yellow", strong & (hue > 45) & (hue < 66) & (value > 0.6))
    say("green", strong & (hue > 85) & (hue < 155))
    say("blue", strong & (hue > 195) & (hue < 250))
    return name


def colour_word(rgb: np.ndarray, share: float = 0.6) -> str | None:
    """The colour word of at least `share` of the points [n, 3], or None."""
    counts = np.bincount(colour_index(rgb) + 1, minlength=len(COLOURS) + 1)[1:]
    best = int(counts.argmax())
    return COLOURS[best] if counts[best] >= share * len(rgb) else None


def repaint(rgb: np.ndarray, word: str) -> np.ndarray:
    """The cloud's light and dark in another colour: rgb [n, 3] in [0, 1]."""
    light = rgb @ np.array([0.3, 0.59, 0.11], np.float32)
    shade = np.clip(1 + 0.7 * (light - np.median(light)), 0.7, 1.15)
    return np.clip(np.array(PALETTE[word], np.float32) * shade[:, None], 0, 1)
