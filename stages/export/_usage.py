"""The commands and snippets of a dataset card; the tests run them as they stand."""

from __future__ import annotations

from winnow.stages.export._columns import media_kind
from winnow.stages.export._layout import Layout
from winnow.stages.export._sniff import AUDIO_EXTENSIONS, last_extension

OPEN_CLIP_EXTENSIONS = ("jpg", "png", "jpeg", "webp")
"""What open_clip_train looks for in a sample; it skips a sample with none of them."""


def usage(layout: Layout) -> str:
    """Return the section "How to load it"."""
    if not layout.data_files:
        return "This export has no rows."
    parts = ["## How to load it", "From inside this folder.", _hugging_face(layout)]
    if layout.format == "llava":
        parts.append(_llava())
    if layout.suffix == ".tar":
        parts.append(_webdataset(layout))
        parts.append(_open_clip(layout))
    return "\n\n".join(part for part in parts if part)


def shards(names: list[str]) -> str:
    """Return the brace pattern of consecutively numbered files, for open_clip and webdataset.

    Numbers of different width are separate patterns, joined by ``::``.
    """
    patterns = []
    for width in sorted({len(name) for name in names}):
        group = sorted(name for name in names if len(name) == width)
        first, last = group[0], group[-1]
        stem, dot, suffix = first.partition(".")
        braces = f"{{{stem}..{last.partition('.')[0]}}}{dot}{suffix}"
        patterns.append(first if first == last else braces)
    return "::".join(patterns)


def _hugging_face(layout: Layout) -> str:
    lines = [
        "Hugging Face datasets (from the hub: `user/dataset` in place of the path):",
        "",
        "```python",
        "from pathlib import Path",
        "",
        "from datasets import load_dataset",
        "",
        'dataset = load_dataset(str(Path.cwd()), split="train", streaming=True)',
        "sample = next(iter(dataset))",
        "```",
    ]
    if len(layout.extensions) > 1 and layout.suffix == ".tar":
        lines += ["", "A sample has its media under its own extension; the others are `None`."]
    return "\n".join([*lines, *_bytes_of_sound(layout)])


def _bytes_of_sound(layout: Layout) -> list[str]:
    """Say how to load sound without the package that ``datasets`` decodes it with."""
    sounds = _sounds(layout)
    if not sounds:
        return []
    if layout.suffix == ".tar":
        code = [
            "from datasets import Value, load_dataset_builder",
            "",
            "features = load_dataset_builder(str(Path.cwd())).info.features",
            *(f'features["{name}"] = Value("binary")' for name in sounds),
            'dataset = load_dataset(str(Path.cwd()), split="train", streaming=True, '
            "features=features)",
        ]
    else:
        code = [
            "from datasets import Audio",
            "",
            *(f'dataset = dataset.cast_column("{name}", Audio(decode=False))' for name in sounds),
        ]
    said = "Sound needs the package `torchcodec` there. Its bytes as they are, without it:"
    return ["", said, "", "```python", *code, "sample = next(iter(dataset))", "```"]


def _sounds(layout: Layout) -> list[str]:
    """Return the fields that ``datasets`` takes for sound."""
    if layout.suffix == ".tar":
        return [e for e in layout.extensions if last_extension(e) in AUDIO_EXTENSIONS]
    if layout.suffix == ".parquet":
        return [name for name in layout.media if media_kind(name) == "audio"]
    return []


def _llava() -> str:
    return "\n".join(
        [
            "LLaVA's trainer and others of its form:",
            "",
            "```bash",
            "python llava/train/train_mem.py --data_path llava.json --image_folder . ...",
            "```",
            "",
            "Python alone:",
            "",
            "```python",
            "import json",
            "",
            "from PIL import Image",
            "",
            'with open("llava.json", encoding="utf-8") as file:',
            "    samples = json.load(file)",
            'image = Image.open(samples[0]["image"])',
            'turns = samples[0]["conversations"]',
            "```",
        ]
    )


def _webdataset(layout: Layout) -> str:
    if layout.payloads is not None:
        return _webdataset_samples(layout)
    media = ";".join(layout.extensions)
    audio = AUDIO_EXTENSIONS.issuperset(layout.extensions)
    fields = [f'"{media}"', *(['"txt"'] if layout.text is not None else []), '"json"']
    decode = "" if audio else '.decode("pil")'
    names = ["media", *(["text"] if layout.text is not None else []), "annotations"]
    loop = [f"for {', '.join(names)} in dataset.to_tuple({', '.join(fields)}):"]
    return _webdataset_code(layout, "webdataset:", decode, loop)


def _webdataset_samples(layout: Layout) -> str:
    """Samples of several media are mappings: ``to_tuple`` stops at the first that lacks one."""
    fields = [
        f"    {name} = " + " or ".join(f'sample.get("{e}")' for e in extensions)
        for name, extensions in layout.media.items()
        if extensions
    ]
    if layout.text is not None:
        fields.append('    text = sample["txt"]')
    said = "webdataset:" + (" (sound is bytes)" if _sounds(layout) else "")
    loop = ["for sample in dataset:", *fields, '    annotations = sample["json"]']
    return _webdataset_code(layout, said, '.decode("pil")', loop)


def _webdataset_code(layout: Layout, said: str, decode: str, loop: list[str]) -> str:
    """Return the snippet that opens the tars and looks at one sample."""
    return "\n".join(
        [
            said,
            "",
            "```python",
            "import webdataset",
            "",
            f'shards = "{shards([f.name for f in layout.data_files])}"',
            f"dataset = webdataset.WebDataset(shards, shardshuffle=False){decode}",
            *loop,
            "    break",
            "```",
        ]
    )


def _open_clip(layout: Layout) -> str:
    readable = sum(layout.extensions.get(e, 0) for e in OPEN_CLIP_EXTENSIONS)
    if layout.text is None or not readable:
        return ""
    workers = min(8, len(layout.data_files))
    lines = [
        "open_clip (`pip install 'open_clip_torch[training]'`; the number of samples comes from "
        "`sizes.json`):",
        "",
        "```bash",
        "python -m open_clip_train.main --dataset-type webdataset \\",
        f"  --train-data '{shards([f.name for f in layout.data_files])}' \\",
        f"  --model ViT-B-32 --batch-size 256 --workers {workers} --epochs 32",
        "```",
    ]
    skipped = sum(layout.extensions.values()) - readable
    if layout.payloads is not None and layout.num_rows > readable:
        lines += ["", f"It skips {layout.num_rows - readable:,} samples without jpg, png or webp."]
    elif skipped and layout.payloads is None:
        lines += [
            "",
            f"It skips {skipped:,} samples that are neither jpg, png nor webp. To train on them "
            "too, export with `extension: jpg`: decoders look at the bytes, not at the name.",
        ]
    return "\n".join(lines)
