"""Row -> what its URL answers with: status, content type and bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageEnhance

from winnow.contracts.identity import stable_hash64
from winnow.stages.sources._scenes.compose import render
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.noise import Row, World

_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_PAGE = """<!DOCTYPE html>
<html><head><title>Picture {index}</title></head>
<body><h1>This picture is no longer here</h1><p>Please visit our <a href="/">home page</a>.</p>
</body></html>
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An HTTP answer; ``drip``: send the body one byte a second."""

    status: int
    content_type: str
    body: bytes
    drip: bool = False


def answer(world: World, row: Row) -> Answer:
    """Return what the URL of a row answers with; the same bytes every time."""
    if row.kind == "dead_link":
        gone = stable_hash64("gone", world.seed, row.index) % 5 == 0
        return Answer(status=410 if gone else 404, content_type="text/plain", body=b"not here\n")
    if row.kind == "html":
        page = _PAGE.format(index=row.index).encode()
        return Answer(status=200, content_type="text/html; charset=utf-8", body=page)
    if row.kind in ("exact_duplicate", "repeated_row") and row.original is not None:
        row = world.row(row.original)
    extension = row.path.partition("?")[0].rpartition(".")[2]
    body = image_bytes(world, row, extension)
    if row.kind == "corrupt":
        body = _damaged(body, Draw("damage", world.seed, row.index))
    return Answer(
        status=200, content_type=_TYPES[extension], body=body, drip=row.kind == "slow_link"
    )


def image_bytes(world: World, row: Row, extension: str) -> bytes:
    """Return the encoded picture of a row, whole even where the row is ``corrupt``."""
    drawn = world.scene(row)
    draw = Draw("encode", world.seed, row.index)
    quality = draw.integer(82, 95)
    if row.kind == "tiny":
        scale = draw.uniform(8, 60) / max(drawn.width, drawn.height)
        size = max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))
        return encoded(render(drawn, *size), extension, quality)
    image = render(drawn, drawn.width, drawn.height)
    if row.kind == "near_duplicate":
        image, quality = _altered(image, draw, world.options.sizes[0])
    return encoded(image, extension, quality)


def encoded(image: Image.Image, extension: str, quality: int) -> bytes:
    """Return the image in the format of a file name extension."""
    out = io.BytesIO()
    if extension == "png":
        image.save(out, "PNG", compress_level=1)
    elif extension == "webp":
        image.save(out, "WEBP", quality=quality, method=0)
    else:
        image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _altered(image: Image.Image, draw: Draw, least: int) -> tuple[Image.Image, int]:
    """Return a near-duplicate and its quality: one to three small changes, always re-encoded."""
    changes = [draw.integer(0, 3) for _ in range(draw.integer(1, 3))]
    if 0 in changes:
        low = max(0.8, min(1.0, least / min(image.size)))
        factor = draw.uniform(low, 1.2)
        size = round(image.width * factor), round(image.height * factor)
        image = image.resize(size, Image.Resampling.LANCZOS)
    if 1 in changes:
        left, right, top, bottom = (draw.uniform(0, 0.025) for _ in range(4))
        image = image.crop(
            (
                round(left * image.width),
                round(top * image.height),
                round((1 - right) * image.width),
                round((1 - bottom) * image.height),
            )
        )
    if 2 in changes:
        image = ImageEnhance.Brightness(image).enhance(draw.uniform(0.88, 1.12))
    if 3 in changes:
        image = _watermarked(image, draw)
    return image, draw.integer(55, 85)


def _watermarked(image: Image.Image, draw: Draw) -> Image.Image:
    """Return the image with a translucent label of about 1 % of its area in one corner."""
    width, height = max(24, image.width // 7), max(8, image.height // 14)
    label = Image.new("L", (44, 12), 60)
    ImageDraw.Draw(label).text((4, 0), "photo.co", fill=200)
    mask = label.resize((width, height), Image.Resampling.BILINEAR)
    corner = (
        draw.pick((4, image.width - width - 4)),
        draw.pick((4, image.height - height - 4)),
    )
    marked = image.copy()
    marked.paste((255, 255, 255), corner, mask)
    return marked


def _damaged(body: bytes, draw: Draw) -> bytes:
    """Return bytes that do not decode: cut off, or random behind nothing."""
    if draw.chance(0.75):
        return body[: max(8, int(len(body) * draw.uniform(0.02, 0.7)))]
    seed = draw.integer(0, 2**31)
    blocks = (stable_hash64("random", seed, i).to_bytes(8, "little") for i in range(256))
    return b"".join(blocks)
