"""What a word or a caption looks like when it is not language: a URL, an address, a file name."""

from __future__ import annotations

import re

_EXTENSIONS = (
    "jpe?g|jpe|jfif|png|gif|webp|avif|hei[cf]|bmp|tiff?|svg|ico|psd|ai|eps|raw|cr2|nef|dng|pdf"
    "|docx?|pptx?|xlsx?|zip|rar|mp[34]|m4v|mov|avi|mkv|webm|wav|ogg|flac|html?|php|aspx?|jsp"
)
_URL = re.compile(
    r"(?:https?|ftps?|file|s3|gs|hdfs|blob|ipfs)://[^\s]+|data:[a-z]+/[^\s]+"
    r"|(?://|www\.)[^\s/.]+\.[^\s]+"
    r"|(?:[a-z0-9-]+\.){1,4}(?:com|net|org|info|biz|edu|gov|io|co\.uk|de|fr|ru|cn|jp)(?:[/:?#]\S*)?",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"(?:mailto:)?[^\s@<>]{1,64}@[^\s@.<>]+(?:\.[^\s@.<>]+)+", re.IGNORECASE)
_FILE = re.compile(rf"[^\n]*[^\s/\\]\.(?:{_EXTENSIONS})(?:[?#]\S*)?", re.IGNORECASE)
_CAMERA = re.compile(
    r"(?:img|image|dsc|dscn|dscf|pict?|pic|photo|vid|mvc|dji|gopr|pxl|mvimg|screenshot|untitled"
    r"|wp|p|cimg|sam)[-_]?\d{2,}(?:[-_.()]?\d+)*",
    re.IGNORECASE,
)
_EDGES = " \t\r\n\v\f\0\"'()[]{}<>,;:!?"
_LONGEST_FILE_NAME = 255
_LONGEST_EMAIL = 320


def is_url(text: str) -> bool:
    """Whether the whole text is one URL: with a scheme, ``//host.tld``, ``www.``, ``name.com``."""
    return _URL.fullmatch(text.strip(_EDGES)) is not None


def is_email(text: str) -> bool:
    """Whether the whole text is one e-mail address, at most 320 characters long."""
    text = text.strip(_EDGES)
    return len(text) <= _LONGEST_EMAIL and _EMAIL.fullmatch(text) is not None


def is_file_name(text: str) -> bool:
    """Whether the whole text is one file name, spaces included, by its extension or by a camera's
    pattern (``IMG_2034``); at most 255 characters long."""
    text = text.strip(_EDGES)
    if len(text) > _LONGEST_FILE_NAME:
        return False
    return _FILE.fullmatch(text) is not None or _CAMERA.fullmatch(text) is not None


def is_reference(word: str) -> bool:
    """Whether a word without spaces is a URL, an e-mail address or a file name."""
    if word.strip(_EDGES + ".").isalpha():
        return False
    return is_url(word) or is_email(word) or is_file_name(word)
