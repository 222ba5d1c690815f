"""Make synthetic images and image folders."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw(seed: int, *, stripes: bool, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Return an image of noise, with or without stripes, so that two classes differ."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (size[1], size[0], 3))
    if stripes:
        pixels[:, ::4] += 120
    return Image.fromarray(pixels.astype(np.uint8))


def make_image_folder(root: Path, *, per_class: int = 12, splits: tuple[str, ...] = ()) -> Path:
    """Write an image folder with the classes ``plain`` and ``striped``, with or without splits."""
    seed = sum(map(ord, root.name))
    for split in splits or (".",):
        for name in ("plain", "striped"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                seed += 1
                draw(seed, stripes=name == "striped").save(folder / f"{number:03d}.png")
    return root
