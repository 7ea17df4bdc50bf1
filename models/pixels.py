"""What every reader of pictures agrees on."""

from __future__ import annotations

import numpy as np
from PIL import Image


def eight_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit grey as its upper 8 bits, "L" or, with a transparent level, "LA".

    Pillow reads 16-bit colour so, but clips 16-bit grey when it converts it: a depth map or an
    X-ray turns white. Any other image is returned as it is.
    """
    if not image.mode.startswith("I;16"):
        return image
    values_HW = np.asarray(image)
    grey = Image.fromarray((values_HW >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values_HW == clear, 0, 255).astype(np.uint8)))
    return grey


def on_white(image: Image.Image) -> Image.Image:
    """Return the image as a white page shows it; an opaque image is returned as it is."""
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    page = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(page, layer).convert("RGB")
