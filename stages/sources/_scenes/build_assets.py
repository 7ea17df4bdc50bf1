"""Make assets/sprites.zip, assets/names.json and the licences beside them. Not used at run time.

    apt-get download fonts-noto-color-emoji && dpkg -x fonts-noto-color-emoji_*.deb deb
    npm pack cldr-annotations-full && tar xzf cldr-annotations-full-*.tgz
    python -m winnow.stages.sources._scenes.build_assets \\
        --font deb/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf \\
        --font-copyright deb/usr/share/doc/fonts-noto-color-emoji/copyright --cldr package

The same inputs give the same bytes. The pictures are the font's own 136 x 128 bitmaps, cropped to
what is visible and stored without loss as palette PNGs.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from PIL import Image, ImageDraw, ImageFont

ASSETS = Path(__file__).parent / "assets"
STRIKE = 109
"""The only bitmap size of the font, in pixels per em."""
LANGUAGES = (
    ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "sv", "tr", "fi", "cs", "hu", "id", "vi")
    + ("ru", "uk", "el", "ar", "he", "hi", "th", "ja", "ko", "zh")
)  # fmt: skip


def glyph(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """Return the character's bitmap, RGBA, cropped to its visible box."""
    image = Image.new("RGBA", (136, 136))
    ImageDraw.Draw(image).text((0, 0), character, font=font, embedded_color=True)
    box = image.getchannel("A").point([0] * 8 + [255] * 248).getbbox()
    if box is None:
        msg = f"the font has no picture of U+{ord(character):X}"
        raise SystemExit(msg)
    return image.crop(box)


def palette_png(image: Image.Image) -> bytes:
    """Return a palette PNG that decodes to exactly ``image`` (invisible pixels zeroed)."""
    zero = Image.new("RGBA", image.size)
    visible = image.getchannel("A").point([0] + [255] * 255)
    image = Image.composite(image, zero, visible)
    colors = image.getcolors(256)
    if colors is None:
        msg = "more than 256 colors; leave this concept out"
        raise SystemExit(msg)
    order = sorted(cast(tuple[int, ...], color) for _, color in colors)
    index = {color: i for i, color in enumerate(order)}
    indexed = Image.frombytes("P", image.size, bytes(index[p] for p in pixels(image)))
    indexed.putpalette([v for color in order for v in color[:3]])
    out = io.BytesIO()
    indexed.save(out, "PNG", optimize=True, transparency=bytes(color[3] for color in order))
    return out.getvalue()


def pixels(image: Image.Image) -> Iterable[tuple[int, ...]]:
    """Return the RGBA pixels in raster order."""
    raw = image.tobytes()
    return (tuple(raw[i : i + 4]) for i in range(0, len(raw), 4))


def cldr_names(cldr: Path, language: str, characters: list[str]) -> list[str]:
    """Return CLDR's short names ("tts") of the characters in a language."""
    text = (cldr / "annotations" / language / "annotations.json").read_text(encoding="utf-8")
    annotations = json.loads(text)["annotations"]["annotations"]
    return [annotations[c]["tts"][0] for c in characters]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the assets of the labelled scenes.")
    parser.add_argument("--font", type=Path, required=True)
    parser.add_argument("--font-copyright", type=Path, required=True)
    parser.add_argument("--cldr", type=Path, required=True)
    args = parser.parse_args()
    font = ImageFont.truetype(str(args.font), STRIKE, layout_engine=ImageFont.Layout.BASIC)
    lines = (ASSETS / "concepts.txt").read_text(encoding="ascii").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    with zipfile.ZipFile(ASSETS / "sprites.zip", "w", zipfile.ZIP_STORED) as archive:
        for code, *_ in rows:
            entry = zipfile.ZipInfo(f"{code}.png", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, palette_png(glyph(font, chr(int(code, 16)))))
    characters = [chr(int(code, 16)) for code, *_ in rows]
    names = {
        language: [name for _, name, *_ in rows]
        if language == "en"
        else cldr_names(args.cldr, language, characters)
        for language in LANGUAGES
    }
    text = ",\n".join(f'"{k}": {json.dumps(v, ensure_ascii=False)}' for k, v in names.items())
    (ASSETS / "names.json").write_text("{" + text + "}\n", encoding="utf-8")
    licence = args.font_copyright.read_text(encoding="utf-8")
    (ASSETS / "LICENSE-NOTO-EMOJI.txt").write_text(
        "sprites.zip is made from the bitmaps of the font Noto Color Emoji, as packaged by Debian\n"
        "(fonts-noto-color-emoji), and is under the font's licence, SIL Open Font License 1.1.\n"
        "The drawings that it is built from are under Apache-2.0. Debian's copyright file:\n\n"
        + licence,
        encoding="utf-8",
    )
    (ASSETS / "LICENSE-CLDR.txt").write_text(
        "names.json, except its English names, is taken from the Unicode CLDR annotations.\n\n"
        + (args.cldr / "LICENSE").read_text(encoding="utf-8"),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
