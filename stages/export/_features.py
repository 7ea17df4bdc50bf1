"""The features of an export's samples as Hugging Face's dataset cards declare them.

Declared, because inference looks at five samples only: it refuses tars with both .jpg and .png,
and takes a column that is null there for a column that is always null.
"""

from __future__ import annotations

from typing import Any

from winnow.stages.export._json_values import json_feature
from winnow.stages.export._layout import JSON_EXTENSION, TEXT_EXTENSION, Layout
from winnow.stages.export._sniff import AUDIO_EXTENSIONS, IMAGE_EXTENSIONS, last_extension

_TEXTS = frozenset({"txt", "text", "transcript"})
_NUMBERS = frozenset({"cls", "cls2", "index", "inx", "id"})
_UNTYPED = frozenset(
    {"json", "jsn", "ten", "tb", "mp", "msg", "npy", "npz", "cbor", "pth"}
    | {"gz", "xz", "zst", "lz4", "bz2", "zip"}
)
"""Sidecars that ``datasets`` decodes to something whose type the name does not tell."""


def tar_features(layout: Layout) -> list[dict[str, Any]]:
    """Return the feature list of the webdataset builder: payload, text, annotations, sidecars."""
    features: list[dict[str, Any]] = [
        {"name": e, "dtype": _dtype(last_extension(e))} for e in layout.extensions
    ]
    if layout.text is not None:
        features.append({"name": TEXT_EXTENSION, "dtype": "string"})
    struct = [{"name": f.name, **json_feature(f.type)} for f in layout.columns]
    features.append({"name": JSON_EXTENSION, "struct": struct})
    for extension in layout.sidecars:
        last = last_extension(extension).lower()
        if last not in _UNTYPED:
            features.append({"name": extension, "dtype": _dtype(last)})
    features += [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
    return features


def _dtype(extension: str) -> str:
    if extension in IMAGE_EXTENSIONS:
        return "image"
    if extension in AUDIO_EXTENSIONS:
        return "audio"
    if extension in _TEXTS:
        return "string"
    return "int64" if extension in _NUMBERS else "binary"
