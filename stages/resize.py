"""Resize and re-encode each image for export, with img2dataset's modes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from PIL import Image

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import DecodedImage, Media
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage
from winnow.models.pixels import eight_bits, on_white
from winnow.stages._media import quiet_pillow

Mode = Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
Interpolation = Literal[
    "nearest", "linear", "bilinear", "cubic", "bicubic", "area", "lanczos", "lanczos4"
]
EncodeFormat = Literal["jpg", "png", "webp"]

MAX_OUTPUT_PIXELS = 89_478_485
"""A 1 x 10000 image with its smaller side grown to 512 would have 2.6 billion."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "linear": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "cubic": Image.Resampling.BICUBIC,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
    "lanczos4": Image.Resampling.LANCZOS,
}
_PILLOW_FORMAT = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
_DEFAULT_QUALITY = {"jpg": 95, "png": 6, "webp": 95}
_QUALITY_RANGE = {"jpg": (1, 100), "png": (0, 9), "webp": (1, 100)}
_GREY_MODES = ("1", "L", "I", "F")


class Geometry(NamedTuple):
    """What to do to an image: scale it, then cut or pad it around its centre to ``final``."""

    scaled: tuple[int, int]
    final: tuple[int, int]
    shrinks: bool


def plan_geometry(
    size: tuple[int, int], mode: Mode, image_size: int, only_if_bigger: bool
) -> Geometry | None:
    """Return the target sizes as (width, height), or None where the image stays as it is.

    img2dataset's Resizer: keep_ratio and center_crop go by the smaller side, border and
    keep_ratio_largest by the larger one; sides are rounded half to even, at least 1.
    """
    if mode == "no":
        return None
    side = min(size) if mode in ("keep_ratio", "center_crop") else max(size)
    shrinks = side > image_size
    if only_if_bigger and not shrinks:
        return None
    scale = image_size / side
    scaled = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    square = (image_size, image_size)
    return Geometry(scaled, square if mode in ("center_crop", "border") else scaled, shrinks)


def place(image: Image.Image, final: tuple[int, int]) -> Image.Image:
    """Cut or pad with white around the centre; an odd pixel is cut or added right and below."""
    if image.size == final:
        return image
    left = _offset(image.width, final[0])
    top = _offset(image.height, final[1])
    if left >= 0 and top >= 0:
        return image.crop((left, top, left + final[0], top + final[1]))
    canvas = Image.new(image.mode, final, "white")
    canvas.paste(image, (-left, -top))
    return canvas


def _offset(length: int, final: int) -> int:
    return (length - final) // 2 if length >= final else -((final - length) // 2)


def flatten(image: Image.Image) -> Image.Image:
    """Return an "L" or "RGB" image; transparency on white."""
    image = on_white(eight_bits(image))
    mode = "L" if image.mode in _GREY_MODES else "RGB"
    return image if image.mode == mode else image.convert(mode)


def encode(image: Image.Image, encode_format: EncodeFormat, quality: int) -> bytes:
    """Return the encoded bytes, without any metadata."""
    bare = image.copy()
    bare.info.clear()  # or Pillow would carry comments and colour profiles over
    options: dict[str, Any] = {"quality": quality}
    if encode_format == "png":
        options = {"compress_level": quality}
    elif encode_format == "jpg":
        options["subsampling"] = "4:2:0"
    out = io.BytesIO()
    bare.save(out, _PILLOW_FORMAT[encode_format], **options)
    return out.getvalue()


@register_stage("resize", version=2)
@dataclass(frozen=True, kw_only=True, slots=True)
class Resize(Stage):
    """Resize and re-encode each image.

    Reads:   image: large_binary, encoded bytes; null where the download failed.
    Writes:  resized_image: large_binary, encoded as ``encode_format``: upright, 8-bit grey or RGB,
                 transparency on white, 16-bit grey as its upper 8 bits,
                 first frame, no metadata and no colour profile.
             resized_width, resized_height: int32, pixels.
             resize_error: string; null, or "missing" (null bytes) | "too_large" (over the recipe's
                 pixel cap) | "undecodable" (unknown format, damaged, truncated) |
                 "output_too_large" (over MAX_OUTPUT_PIXELS, or over what the format can hold).
                 Where it is set, the other columns are null; elsewhere none is.
    Cost:    CPU only; shares the pass's decoded image. Resizing and encoding dominate.
    Fails:   a bad row never raises. RecipeError for parameters out of range.

    mode: "no" (re-encode only), "keep_ratio" (smaller side = image_size), "center_crop" (that,
    then the middle square), "keep_ratio_largest" (larger side = image_size), "border" (that, then
    white up to the square). only_if_bigger: leave the geometry of images whose side that the mode
    goes by is not over image_size. encode_quality: 1 to 100 (jpg, webp; default 95) or zlib's
    level 0 to 9 (png; default 6). skip_reencode: keep the bytes of a still, upright, opaque image
    that is already in encode_format and keeps its size.

    Geometry is that of img2dataset 1.47's Resizer (after EXIF orientation, which it ignores);
    the sampling is Pillow's, which differs a little from OpenCV's: "area" is the mean of whole
    source pixels, and the other kinds widen their filter when they shrink (OpenCV's alias).
    """

    mode: Mode = result("border")
    image_size: int = result(256)
    only_if_bigger: bool = result(False)
    upscale_interpolation: Interpolation = result("lanczos")
    downscale_interpolation: Interpolation = result("area")
    encode_format: EncodeFormat = result("jpg")
    encode_quality: int | None = result(None)
    skip_reencode: bool = result(False)

    reads = pa.schema({"image": pa.large_binary()})
    writes = pa.schema(
        {
            "resized_image": pa.large_binary(),
            "resized_width": pa.int32(),
            "resized_height": pa.int32(),
            "resize_error": pa.string(),
        }
    )

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 16_383:
            msg = f"resize: image_size={self.image_size}; use 1 to 16383 pixels"
            raise RecipeError(msg)
        low, high = _QUALITY_RANGE[self.encode_format]
        if self.encode_quality is not None and not low <= self.encode_quality <= high:
            msg = (
                f"resize: encode_quality={self.encode_quality} is not a quality of "
                f"{self.encode_format}; use {low} to {high}, or leave it out"
            )
            raise RecipeError(msg)

    def annotate(self, batch: pa.RecordBatch, state: None, media: Media) -> pa.RecordBatch:
        rows: list[dict[str, Any]] = []
        with quiet_pillow():
            for data, image in zip(batch.column("image"), media.images("image"), strict=True):
                if isinstance(image, str):
                    rows.append({"resize_error": image})
                else:
                    rows.append(self._resize(image, data))
        return pa.RecordBatch.from_pylist(rows, schema=self.writes)

    def _resize(self, image: DecodedImage, data: pa.Scalar) -> dict[str, Any]:
        size = image.pixels.size
        geometry = plan_geometry(size, self.mode, self.image_size, self.only_if_bigger)
        if geometry is None and self.skip_reencode and self._is_ready(image):
            return _row(data.as_py(), size)
        if geometry is not None and geometry.scaled[0] * geometry.scaled[1] > MAX_OUTPUT_PIXELS:
            return {"resize_error": "output_too_large"}
        pixels = flatten(image.pixels)
        if geometry is not None:
            name = self.downscale_interpolation if geometry.shrinks else self.upscale_interpolation
            pixels = place(pixels.resize(geometry.scaled, _RESAMPLING[name]), geometry.final)
        quality = self.encode_quality
        if quality is None:
            quality = _DEFAULT_QUALITY[self.encode_format]
        try:
            return _row(encode(pixels, self.encode_format, quality), pixels.size)
        except (OSError, ValueError):  # 65,500 pixels a side in a JPEG, 16,383 in a WebP
            return {"resize_error": "output_too_large"}

    def _is_ready(self, image: DecodedImage) -> bool:
        return (
            image.format == _PILLOW_FORMAT[self.encode_format]
            and image.exif_orientation == 1
            and not image.alpha
            and not image.animated
        )


def _row(data: bytes, size: tuple[int, int]) -> dict[str, Any]:
    return {"resized_image": data, "resized_width": size[0], "resized_height": size[1]}
