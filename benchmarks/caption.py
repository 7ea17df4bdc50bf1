"""The caption stage against plain ``generate`` of transformers: same model, same batch, one run.

    python benchmarks/caption.py                              # a BLIP and a projector, both random
    python benchmarks/caption.py --model ./blip --device cuda --batch-size 64 --images 512
    python benchmarks/caption.py --engine projector --connector qformer --queries 49

Both sides go from encoded bytes to texts, on as many threads:

    plain    Pillow, the model's processor, ``generate`` (greedy, its own cache), ``batch_decode``
    stage    the stage's ``annotate``: Arrow in, texts and log-likelihoods out

For a projector, "plain" is the same prefix given to its language model's own ``generate``; gated
layers, which are no prefix, have no such side.

They take turns ``--rounds`` times; the medians and their ratio are printed. Tokens are those that
were written, the end included. Needs ``pip install "winnow-data[captions]"``.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from winnow.contracts.media import MediaCaps
from winnow.contracts.stage import WorkerOptions
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.caption import Caption

Side = Callable[[], tuple[float, int]]


def jpegs(count: int) -> list[bytes]:
    """Return pictures of 256 to 512 pixels with detail at two scales."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        size = tuple(int(v) for v in rng.integers(256, 513, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        buffer = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=88)
        found.append(buffer.getvalue())
    return found


def random_blip(folder: Path, *, width: int, layers: int, side: int) -> str:
    """Write a BLIP captioner with random weights whose texts end at different places."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder.mkdir(parents=True)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(30_517))]
    (folder / "vocab.txt").write_text("\n".join(names))
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": width // 64}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config=shape | ids | {"vocab_size": len(names), "encoder_hidden_size": width},
        vision_config=shape | {"image_size": side, "patch_size": 16},
    )
    torch.manual_seed(0)
    network = BlipForConditionalGeneration(config)
    for weights in network.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.06)
    network.save_pretrained(folder)
    size = {"height": side, "width": side}
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    BlipProcessor(BlipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return str(folder)


def random_projector(folder: Path, connector: str, num_queries: int) -> str:
    """Write an untrained connector between the packaged tower and the packaged language model."""
    from winnow.models.projector import build_projector
    from winnow.models.projector_files import ProjectorConfig, save_projector

    config = ProjectorConfig(
        tower="patches", language_model="tiny-lm", connector=connector, num_queries=num_queries
    )
    save_projector(folder, build_projector(config, seed=0, device="cpu"))
    return str(folder)


def stage_side(stage: Caption, worker: Any, images: list[bytes]) -> Side:
    """Return the stage over all images; it reports seconds and tokens."""
    columns = {
        "uid": pa.array([i.to_bytes(16, "big") for i in range(len(images))], pa.binary(16)),
        "image": pa.array(images, pa.large_binary()),
    }
    whole = pa.RecordBatch.from_pydict(columns)
    size = stage.batch_rows or len(images)
    written = 0
    generate = type(worker.captioner).generate

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal written
        found = generate(self, *args, **options)
        written += sum(one.num_tokens for one in found)
        return found

    type(worker.captioner).generate = counted

    def side() -> tuple[float, int]:
        nonlocal written
        written, began = 0, time.perf_counter()
        with MediaCache(1 << 28, 2) as cache:
            for start in range(0, len(images), size):
                part = whole.slice(start, size)
                media = BatchMedia(part, caps=MediaCaps(), cache=cache, first_row=start)
                stage.annotate(part, worker, media)
        return time.perf_counter() - began, written

    return side


def plain_side(worker: Any, images: list[bytes], settings: argparse.Namespace) -> Side:
    """Return what a plain script does with the same network, batch by batch."""
    captioner = worker.captioner
    blip = hasattr(captioner, "processor")

    def side() -> tuple[float, int]:
        began, written = time.perf_counter(), 0
        for start in range(0, len(images), settings.batch_size):
            files = images[start : start + settings.batch_size]
            pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
            tokens = (plain_hf if blip else plain_projector)(captioner, pictures, settings)
            for row in tokens.tolist():
                end = [i for i, token in enumerate(row) if token in settings.ends]
                written += end[0] + 1 if end else len(row)
        return time.perf_counter() - began, written

    return side


def plain_hf(captioner: Any, pictures: list[Any], settings: argparse.Namespace) -> torch.Tensor:
    """Processor, generate, batch_decode."""
    inputs = captioner.prepare(pictures)
    inputs = {name: value.to(captioner.device) for name, value in inputs.items()}
    with torch.inference_mode():
        tokens = captioner.network.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=settings.max_tokens
        )
    captioner.processor.batch_decode(tokens, skip_special_tokens=True)
    return tokens[:, -settings.max_tokens :] if "input_ids" in inputs else tokens[:, 1:]


def plain_projector(
    captioner: Any, pictures: list[Any], settings: argparse.Namespace
) -> torch.Tensor:
    """The same prefix, given to the language model's own generate."""
    projector = captioner.projector
    kept: dict[str, Any] = {}

    def keep(language: Any, prefix: torch.Tensor, mask: torch.Tensor, *_: Any, **__: Any) -> list:
        kept.update(prefix=prefix, mask=mask)
        return []

    import winnow.models.projector_network as module

    original, module.generate_answers = module.generate_answers, keep
    try:
        captioner.generate(captioner.prepare(pictures), settings.sampling, None, candidates=1)
    finally:
        module.generate_answers = original
    language = projector.language
    with torch.inference_mode():
        tokens = projector.network.generate(
            inputs_embeds=kept["prefix"], attention_mask=kept["mask"], do_sample=False,
            num_beams=1, max_new_tokens=settings.max_tokens, eos_token_id=language.eos_id,
            pad_token_id=language.pad_id,
        )  # fmt: skip
    language.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return tokens


def measure(engine: str, model: str, settings: argparse.Namespace) -> None:
    """Print one model's line."""
    stage = Caption(
        engine=engine, model=model, batch_size=settings.batch_size, keep_cut=True,
        max_tokens=settings.max_tokens, device=settings.device, num_threads=settings.threads,
    )  # fmt: skip
    worker = stage.setup(WorkerOptions())
    captioner = worker.captioner
    settings.sampling = worker.options.sampling
    language = getattr(captioner, "projector", None)
    settings.ends = captioner.ends if language is None else {language.language.eos_id}
    images = jpegs(settings.images)
    sides = {"stage": stage_side(stage, worker, images)}
    if language is None or language.gated is None:
        sides = {"plain": plain_side(worker, images, settings), **sides}
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in sides}
    for turn in range(settings.rounds + 1):
        for name, side in sides.items():
            result = side()
            if turn:  # the first one warms up
                found[name].append(result)
    rates = {}
    for name, results in found.items():
        seconds = statistics.median(s for s, _ in results)
        rates[name] = len(images) / seconds
        tokens = results[0][1]
        print(
            f"{engine:10} {name:6} {rates[name]:8.1f} captions/s {tokens / seconds:9.0f} tokens/s"
        )
    if "plain" in rates:
        print(f"{engine:10} ratio  {rates['stage'] / rates['plain']:8.2f} (stage / plain)")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a folder; default: random ones")
    parser.add_argument("--engine", choices=["hf", "projector"], help="default: both")
    parser.add_argument("--connector", default="mlp", help="of the random projector")
    parser.add_argument("--queries", type=int, default=32, help="of its connector")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    engines = [settings.engine] if settings.engine else ["hf", "projector"]
    with tempfile.TemporaryDirectory() as scratch:
        for engine in engines:
            folder = Path(scratch) / engine
            if settings.model:
                model = settings.model
            elif engine == "hf":
                sizes = {"width": settings.width, "layers": settings.layers}
                model = random_blip(folder, **sizes, side=224)
            else:
                model = random_projector(folder, settings.connector, settings.queries)
            measure(engine, model, settings)


if __name__ == "__main__":
    main()
