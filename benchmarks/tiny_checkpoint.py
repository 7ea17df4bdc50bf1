"""Train the packaged tiny CLIP on clean scenes, drawn on the fly, and measure it.

    python benchmarks/tiny_checkpoint.py               # write models/checkpoints/tiny
    python benchmarks/tiny_checkpoint.py --evaluate    # measure what is there

Pictures are clean (no wrong caption is ever shown) but look as they do on the web: other sizes,
JPEG, slight crops, other brightness. Held-out scenes come from another seed. The measurements:
retrieval@1 among 1,000 scenes, and how the cosine separates true from swapped captions.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from winnow.models.checkpoint import find_model
from winnow.models.contrastive import Preprocess, build_network, load_model, save_model
from winnow.models.tokenizer import Tokenizer, trimmed_merges, write_merges
from winnow.stages.sources._scenes import SceneOptions, caption, num_variants, render, scene
from winnow.stages.train.loop import Progress, TrainConfig, forget_state, train_contrastive

VOCABULARY = 2560
MODEL = {
    "embed_dim": 192,
    "vision_cfg": {
        "image_size": 64,
        "patch_size": 16,
        "width": 192,
        "layers": 5,
        "head_width": 64,
        "pool_type": "avg",
    },
    "text_cfg": {
        "context_length": 32,
        "vocab_size": VOCABULARY,
        "width": 192,
        "heads": 3,
        "layers": 2,
    },
}
PREPROCESS = {"size": [64, 64], "resize_mode": "squash", "interpolation": "bicubic"}
WORK_SIZE = 72
TRAIN_SEED, HELD_OUT_SEED = 20_001, 90_001
OPTIONS = SceneOptions()


def web_jpeg(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Return what a web site might serve of a picture: cut by up to 5 %, other light, JPEG."""
    width, height = image.size
    cut = rng.uniform(0, 0.05, 4)
    box = (cut[0] * width, cut[1] * height, width - cut[2] * width, height - cut[3] * height)
    image = image.crop(tuple(round(v) for v in box))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(35, 96)))
    return buffer.getvalue()


def training_batches(
    config: TrainConfig, tokenizer: Tokenizer, step: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield fresh scenes for ever; one in eight at full size and through a JPEG."""
    size = (WORK_SIZE, WORK_SIZE)
    while True:
        rng = np.random.default_rng([config.seed, step])
        pixels, texts = [], []
        for index in range(step * config.batch_size, (step + 1) * config.batch_size):
            described = scene(TRAIN_SEED, index, OPTIONS)
            if rng.random() < 0.12:
                image = render(described, described.width, described.height)
                image = Image.open(io.BytesIO(web_jpeg(image, rng)))
            else:
                side = int(rng.integers(WORK_SIZE, 2 * WORK_SIZE))
                image = render(described, side, side)
            pixels.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC)))
            texts.append(caption(described, variant=int(rng.integers(num_variants()))))
        yield np.stack(pixels), tokenizer(texts)
        step += 1


def train(folder: Path, config: TrainConfig) -> None:
    """Train and write the checkpoint."""
    texts = (
        caption(scene(TRAIN_SEED, i, OPTIONS), variant=v)
        for i in range(3000)
        for v in range(num_variants())
    )
    merges = trimmed_merges(texts, VOCABULARY)
    folder.mkdir(parents=True, exist_ok=True)
    write_merges(merges, folder / "bpe_merges.txt.gz")
    from open_clip.tokenizer import SimpleTokenizer

    inner = SimpleTokenizer(bpe_path=str(folder / "bpe_merges.txt.gz"), context_length=32)
    tokenizer = Tokenizer(inner, 32)
    network = build_network(MODEL, seed=config.seed)

    def report(progress: Progress) -> None:
        if (progress.samples_seen // config.batch_size) % 100 == 0:
            print(
                f"{progress.samples_seen:>9,} samples  loss {progress.loss:.3f}  "
                f"scale {progress.temperature:.1f}  {progress.samples_per_s:.0f}/s",
                flush=True,
            )

    outcome = train_contrastive(
        network,
        lambda step: training_batches(config, tokenizer, step),
        config,
        normalize=Preprocess(PREPROCESS).normalize,
        image_size=64,
        folder=folder,
        report=report,
    )
    save_model(
        folder,
        network,
        config=MODEL,
        preprocess=PREPROCESS,
        merges=merges,
        dtype=torch.float16,
    )
    data = hashlib.blake2b(f"{TRAIN_SEED} {OPTIONS}".encode(), digest_size=16).hexdigest()
    document = {"config": asdict(config), "data": data, **outcome}
    (folder / "training.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    forget_state(folder)


def embed(folder: Path, start: int, count: int, *, web: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit image and text vectors of held-out scenes, as the clip_score stage makes them."""
    model = load_model(find_model(str(folder.resolve())), device="cpu")
    rng = np.random.default_rng([HELD_OUT_SEED, start])
    images, texts = [], []
    for first in range(start, start + count, 100):
        pixels, captions = [], []
        for index in range(first, min(first + 100, start + count)):
            described = scene(HELD_OUT_SEED, index, OPTIONS)
            image = render(described, described.width, described.height)
            if web:
                image = Image.open(io.BytesIO(web_jpeg(image, rng)))
            pixels.append(model.preprocess.pixels(image))
            captions.append(caption(described, variant=int(rng.integers(num_variants()))))
        images.append(model.embed_images(torch.from_numpy(np.stack(pixels))))
        texts.append(model.embed_texts(captions))
    return torch.cat(images), torch.cat(texts)


def evaluate(folder: Path, count: int) -> dict[str, object]:
    """Print and return retrieval@1 among 1,000 and the precision-recall curve of a threshold."""
    images, texts = embed(folder, 0, count, web=True)
    ranks = [(images[i : i + 1000] @ texts[i : i + 1000].T) for i in range(0, count - 999, 1000)]
    right = torch.arange(1000)
    image_to_text = np.mean([float((r.argmax(1) == right).float().mean()) for r in ranks])
    text_to_image = np.mean([float((r.argmax(0) == right).float().mean()) for r in ranks])
    true = (images * texts).sum(1).numpy()
    swapped = (images * texts.roll(1, 0)).sum(1).numpy()
    order = np.sort(swapped)
    auc = float(np.mean(np.searchsorted(order, true) / len(order)))
    print(f"retrieval@1 of 1,000: image to text {image_to_text:.3f}, text to image "
          f"{text_to_image:.3f}")  # fmt: skip
    print(f"true against swapped captions ({count:,} web pictures): AUC {auc:.4f}")
    print("threshold  true kept  swapped kept  precision at 20 % swapped")
    curve = []
    for threshold in np.arange(0.0, 0.71, 0.05):
        kept, wrong = float((true >= threshold).mean()), float((swapped >= threshold).mean())
        precision = 0.8 * kept / max(1e-9, 0.8 * kept + 0.2 * wrong)
        curve.append([round(float(threshold), 2), round(kept, 4), round(wrong, 4)])
        print(f"{threshold:9.2f}  {kept:9.4f}  {wrong:12.4f}  {precision:9.4f}")
    return {"image_to_text": image_to_text, "text_to_image": text_to_image, "auc": auc,
            "curve": curve}  # fmt: skip


def main() -> None:
    """Train, or evaluate what is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("models/checkpoints/tiny"))
    parser.add_argument("--samples", type=int, default=384_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate", action="store_true", help="measure, do not train")
    parser.add_argument("--scenes", type=int, default=3000, help="held-out scenes to measure on")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        config = TrainConfig(
            num_samples=options.samples,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_samples=12_800,
            seed=options.seed,
            device="cpu",
            checkpoint_samples=25_600,
        )
        train(options.out, config)
    size = (options.out / "model.safetensors").stat().st_size
    print(f"model.safetensors: {size / 1e6:.2f} MB")
    evaluate(options.out, options.scenes)


if __name__ == "__main__":
    main()
