"""What every reader of pictures agrees on."""

from __future__ import annotations

from PIL import Image


def on_white(image: Image.Image) -> Image.Image:
    """Return the image as a white page shows it; an opaque image is returned as it is."""
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    page = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(page, layer).convert("RGB")
