"""Hugging Face captioners against a plain, one-by-one ``generate`` of transformers itself."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.captioners import blip, llava
from tests.scored import picture
from winnow.contracts.errors import SetupError
from winnow.models.conversation import CAPTION_PROMPT
from winnow.models.generation import Sampling
from winnow.models.hf_captioner import HfCaptioner, load_captioner
from winnow.models.hf_captioner_files import find_captioner

KINDS = {"blip": blip, "llava": llava}
PICTURES = [picture(seed) for seed in range(6)]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(KINDS[request.param](tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(blip(tmp_path_factory.mktemp("blip")))


@pytest.fixture(scope="module")
def captioner(folder: Path) -> HfCaptioner:
    return load_captioner(find_captioner(str(folder)))


def naive(folder: Path, image: Image.Image, **options: Any) -> tuple[list[int], list[Any], Any]:
    """Return the new tokens, their raw logits, and the tokenizer, of one image alone."""
    import transformers

    network = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    asked: dict[str, Any] = {"images": image}
    if processor.chat_template:
        content = [{"type": "image"}, {"type": "text", "text": CAPTION_PROMPT}]
        asked["text"] = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        options["add_special_tokens"] = False  # the template writes the start
    add = {k: options.pop(k) for k in ("add_special_tokens",) if k in options}
    output = network.generate(
        **processor(**asked, return_tensors="pt", **add),
        do_sample=False, num_beams=1, output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    count = len(output.logits)
    return output.sequences[0, -count:].tolist(), list(output.logits), processor.tokenizer


def test_greedy_equals_generate_one_by_one(folder: Path, captioner: HfCaptioner) -> None:
    found = captioner.generate(captioner.prepare(PICTURES), Sampling(max_tokens=8))
    assert len({one.text for one in found}) > 2, "the pictures make no difference"
    for image, one in zip(PICTURES, found, strict=True):
        tokens, logits, tokenizer = naive(folder, image, max_new_tokens=8)
        assert one.text == tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert one.num_tokens == len(tokens)
        assert one.finished == (len(tokens) < 8)
        expected = sum(
            float(torch.log_softmax(row[0].double(), 0)[token])
            for row, token in zip(logits, tokens, strict=True)
        )
        assert one.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_some_end_and_some_are_cut(blip_folder: Path) -> None:
    captioner = load_captioner(find_captioner(str(blip_folder)))
    found = captioner.generate(captioner.prepare(PICTURES), Sampling(max_tokens=8))
    assert {one.finished for one in found} == {True, False}
    for one in found:
        assert one.num_tokens <= 8
        assert one.finished or one.num_tokens == 8


def test_nucleus_draws_as_transformers_warpers_say(captioner: HfCaptioner, folder: Path) -> None:
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    _, logits, tokenizer = naive(folder, PICTURES[0], max_new_tokens=1)
    warped = TopPLogitsWarper(0.8)(None, TemperatureLogitsWarper(1.5)(None, logits[0]))
    expected = torch.softmax(warped[0], 0).numpy()
    count = 3000
    sampling = Sampling(max_tokens=1, top_p=0.8, temperature=1.5)
    inputs = captioner.prepare([PICTURES[0]])
    one = {name: value.repeat_interleave(count, 0) for name, value in inputs.items()}
    found = captioner.generate(one, sampling, list(range(count)))
    probabilities = torch.softmax(logits[0][0], 0)
    logs = {round(f.log_likelihood, 3) for f in found}
    possible = {round(float(probabilities[t].log()), 3) for t in np.flatnonzero(expected)}
    assert logs <= possible
    for token in np.flatnonzero(expected > 0.05).tolist():
        text = tokenizer.decode([token], skip_special_tokens=True).strip()
        same = [t for t in range(len(expected)) if _text(tokenizer, t) == text]
        share = np.mean([f.text == text for f in found])
        assert share == pytest.approx(expected[same].sum(), abs=0.04)


def _text(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token], skip_special_tokens=True).strip()


def test_a_text_depends_on_its_seed_and_on_no_neighbour(captioner: HfCaptioner) -> None:
    sampling = Sampling(max_tokens=8, top_p=0.95)
    seeds = [7 * i for i in range(6)]
    whole = captioner.generate(captioner.prepare(PICTURES), sampling, seeds)
    order = [4, 2, 5, 0]
    some = captioner.generate(
        captioner.prepare([PICTURES[i] for i in order]), sampling, [seeds[i] for i in order]
    )
    assert [one.text for one in some] == [whole[i].text for i in order]
    other = captioner.generate(captioner.prepare(PICTURES), sampling, [s + 1 for s in seeds])
    assert [one.text for one in other] != [one.text for one in whole]
    pairs = captioner.generate(
        captioner.prepare(PICTURES), sampling,
        [s for seed in seeds for s in (seed, seed + 1)], candidates=2,
    )  # fmt: skip
    assert pairs[0::2] == whole
    assert pairs[1::2] == other


def test_the_prompt_of_blip_stands_before_the_caption(blip_folder: Path) -> None:
    import transformers

    captioner = load_captioner(find_captioner(str(blip_folder)), prompt="a red")
    assert captioner.prompt == "a red"
    found = captioner.generate(captioner.prepare(PICTURES[:2]), Sampling(max_tokens=6))
    network = transformers.BlipForConditionalGeneration.from_pretrained(blip_folder)
    processor = transformers.AutoProcessor.from_pretrained(blip_folder)
    for image, one in zip(PICTURES, found, strict=False):
        inputs = processor(images=image, text="a red", return_tensors="pt")
        tokens = network.generate(**inputs, max_new_tokens=6, num_beams=1)[0, 3:]
        assert one.text == processor.decode(tokens, skip_special_tokens=True).strip()


def test_the_models_own_settings_of_generate_do_not_count(
    blip_folder: Path, tmp_path: Path
) -> None:
    expected = load_captioner(find_captioner(str(blip_folder)))
    folder = tmp_path / "other"
    shutil.copytree(blip_folder, folder)
    settings = {"do_sample": True, "num_beams": 3, "repetition_penalty": 9.0, "min_new_tokens": 7}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    other = load_captioner(find_captioner(str(folder)))
    inputs = expected.prepare(PICTURES)
    sampling = Sampling(max_tokens=8)
    assert other.generate(inputs, sampling) == expected.generate(inputs, sampling)


def test_a_row_that_overflows_has_no_likelihood(blip_folder: Path) -> None:
    captioner = load_captioner(find_captioner(str(blip_folder)))
    with torch.no_grad():
        captioner.network.text_decoder.cls.predictions.bias[5] = torch.nan
    for sampling in (Sampling(max_tokens=3), Sampling(max_tokens=3, top_p=0.9)):
        found = captioner.generate(captioner.prepare(PICTURES[:2]), sampling, [1, 2])
        assert [np.isnan(one.log_likelihood) for one in found] == [True, True]


def test_the_digest_is_of_the_content(blip_folder: Path, tmp_path: Path) -> None:
    first = find_captioner(str(blip_folder)).digest()
    seen = {first}
    shutil.copytree(blip_folder, tmp_path / "same")
    (tmp_path / "same" / "README.md").write_text("elsewhere")
    assert find_captioner(str(tmp_path / "same")).digest() == first
    for name in ("model.safetensors", "config.json", "tokenizer.json", "processor_config.json"):
        changed = tmp_path / name.replace(".", "-")
        shutil.copytree(blip_folder, changed)
        with (changed / name).open("ab") as file:
            file.write(b" ")
        seen.add(find_captioner(str(changed)).digest())
    assert len(seen) == 5


def test_what_cannot_be_a_captioner_is_refused(blip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="config.json is missing"):
        find_captioner(str(tmp_path))
    with pytest.raises(SetupError, match="cannot be had from the Hugging Face hub"):
        find_captioner("no-such-organisation/no-such-model")

    pickled = tmp_path / "pickled"
    shutil.copytree(blip_folder, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(SetupError, match="no weights in .* as safetensors"):
        find_captioner(str(pickled))

    holed = tmp_path / "holed"
    shutil.copytree(blip_folder, holed)
    weights = load_file(holed / "model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, holed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SetupError, match="post_layernorm.weight is missing in the weights"):
        load_captioner(find_captioner(str(holed)))

    foreign = tmp_path / "foreign"
    shutil.copytree(blip_folder, foreign)
    config = json.loads((foreign / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "code.py").write_text("raise SystemExit('code from the folder ran')")
    with pytest.raises(SetupError, match="cannot be loaded"):
        load_captioner(find_captioner(str(foreign)))


def test_a_text_that_the_model_has_no_room_for_is_refused(folder: Path) -> None:
    with pytest.raises(SetupError, match="the model has 64 positions"):
        load_captioner(find_captioner(str(folder)), max_tokens=64)


def test_transformers_is_an_extra(blip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_captioner(str(blip_folder))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SetupError, match=r'pip install "winnow-data\[captions\]"'):
        load_captioner(files)
