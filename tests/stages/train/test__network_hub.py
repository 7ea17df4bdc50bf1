"""Architectures with parts from the Hugging Face hub, and CoCa's towers, can be trained."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file

from tests.hub_parts import hub_cache, save_tokenizer, save_transformer, texts_of
from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.trial import Dataset
from winnow.models.checkpoint import architecture as described
from winnow.models.checkpoint import find_model
from winnow.models.contrastive import build_network, load_model
from winnow.stages.train._config import TrainConfig
from winnow.stages.train._network import Setup, network_plan
from winnow.stages.train.contrastive import ContrastiveTrainer

from .cards import COLORS, architecture, card, write_shard

CAPTIONS = [f"A {name} card." for name in COLORS]
TRANSFORMERS = ("roberta", "xlm-roberta", "mt5", "m2m_100")
CARDS = architecture()["model_cfg"]
BLOCKS = {"context_length": 16, "width": 32, "heads": 2, "layers": 1}
SIGLIP_TEXT = {
    **BLOCKS, "vocab_size": 400, "hf_tokenizer_name": "org/tok",
    "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True,
    "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
}  # fmt: skip
CLIPA_TEXT = {
    **BLOCKS, "vocab_size": 400, "hf_tokenizer_name": "org/tok",
    "tokenizer_kwargs": {"strip_sep_token": True}, "no_causal_mask": True, "pool_type": "last",
}  # fmt: skip


def _configs() -> dict[str, dict[str, Any]]:
    """As open_clip's families are, but small."""
    tower = CARDS["vision_cfg"]
    timm = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map",
            "timm_model_pretrained": False, "timm_proj": "none"}  # fmt: skip
    coca_text = {**BLOCKS, "context_length": 12, "vocab_size": 560, "embed_cls": True}
    attentional = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    configs: dict[str, dict[str, Any]] = {
        "siglip": {"embed_dim": 64, "init_logit_bias": -10, "custom_text": True,
                   "vision_cfg": timm, "text_cfg": SIGLIP_TEXT},
        "clipa": {"embed_dim": 24, "text_cfg": CLIPA_TEXT,
                  "vision_cfg": {**tower, "pool_type": "avg", "no_ln_pre": True}},
        "coca": {"embed_dim": 24, "custom_text": True, "vision_cfg": {**tower, **attentional},
                 "text_cfg": {**coca_text, "output_tokens": True},
                 "multimodal_cfg": {**BLOCKS, "context_length": 12, "vocab_size": 560,
                                    "attn_pooler_heads": 2}},
    }  # fmt: skip
    for kind in TRANSFORMERS:
        pooler = "cls_pooler" if kind == "m2m_100" else "mean_pooler"
        named = {"hf_model_name": f"org/{kind}", "hf_tokenizer_name": "org/tok"}
        text = {**named, "context_length": 16, "hf_proj_type": "linear", "hf_pooler_type": pooler}
        configs[kind] = {"embed_dim": 24, "vision_cfg": tower, "text_cfg": text}
    return configs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with configurations, a shard of cards, and a hub's cache."""
    path = tmp_path_factory.mktemp("hub")
    tokenizer = save_tokenizer(path / "tok", CAPTIONS)
    kinds = {f"org/{kind}": [save_transformer(path / kind, kind)] for kind in TRANSFORMERS}
    for name, config in _configs().items():
        (path / f"{name}.json").write_text(json.dumps(config))
    samples = [
        {"jpg": card(color, index, (32, 32)), "txt": text.encode()}
        for index, (color, text) in enumerate(zip(COLORS.values(), CAPTIONS, strict=True))
    ]
    write_shard(path / "0.tar", samples * 2)
    with hub_cache(path / "cache", {"org/tok": [tokenizer], **kinds}):
        yield path


def _train(home: Path, model: str, name: str, steps: int = 2, **parameters: Any) -> Path:
    shard = str(home / "0.tar")
    data = Dataset(name="train", shards=(shard,), digest="00", num_rows=2 * len(COLORS))
    given = {"batch_size": 8, "device": "cpu", "learning_rate": 3e-3, **parameters}
    trainer = ContrastiveTrainer(model=str(home / model), **given)
    trainer.train(data, home / name, num_samples=8 * steps, seed=3)
    return home / name


@pytest.mark.parametrize(
    "parameters",
    [{}, {"loss": "siglip"}, {"stream": True, "num_lanes": 1}, {"micro_batch_size": 4}],
    ids=str,
)
def test_a_tower_with_a_hubs_tokenizer_learns_and_is_written_with_it(
    parameters: dict[str, Any], home: Path
) -> None:
    folder = _train(home, "clipa.json", f"clipa {parameters}", 60, **parameters)
    curve = json.loads((folder / "training.json").read_text())["loss_curve"]
    assert np.mean(curve[-5:]) < 0.6 * np.mean(curve[:5])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (home / "tok" / name).read_bytes()
    assert not (folder / "bpe_merges.txt.gz").exists()
    model = load_model(find_model(str(folder)), device="cpu")
    assert (model.network.logit_bias is not None) == (parameters.get("loss") == "siglip")
    reference = HFTokenizer(str(home / "tok"), context_length=16, strip_sep_token=True)
    assert torch.equal(model.tokenizer(CAPTIONS), reference(CAPTIONS))


@pytest.mark.parametrize("name", list(_configs()))
def test_open_clips_own_loader_gives_the_embeddings_of_what_was_written(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _train(home, f"{name}.json", f"written {name}")
    monkeypatch.chdir(folder)  # a vocabulary of merges is named relative to it
    model = load_model(find_model(str(folder)), device="cpu")
    network = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    with torch.no_grad():
        expected: torch.Tensor = network.encode_text(tokens, normalize=True)  # type: ignore[operator]
    torch.testing.assert_close(model.embed_texts(CAPTIONS), expected)
    size = model.preprocess.height
    pixels = torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8)
    assert model.embed_images(pixels).shape == (3, expected.shape[1])
    written = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    assert "multimodal_cfg" not in written
    assert str(home) not in texts_of(folder).replace(str(home / f"{name}.json"), "")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_text_transformer_starts_from_the_hubs_weights(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("winnow.stages.train.loop._rate", lambda step, config: 0.0)
    folder = _train(home, f"{name}.json", f"start {name}")
    given, written = (
        load_file(home / name / "model.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    inner = {key.removeprefix("encoder."): value for key, value in given.items()}
    inner |= given
    prefix = "text.transformer."
    names = [key.removeprefix(prefix) for key in written if key.startswith(prefix)]
    same = [key for key in names if key in inner and torch.equal(inner[key], written[prefix + key])]
    assert len(same) > 0.9 * len(names) > 10


def test_a_written_text_transformer_needs_no_hub(home: Path, tmp_path: Path) -> None:
    folder = _train(home, "roberta.json", "no hub")
    before = load_model(find_model(str(folder)), device="cpu").embed_texts(CAPTIONS)
    with hub_cache(tmp_path / "empty", {}):
        files = find_model(str(folder))
        torch.testing.assert_close(load_model(files, device="cpu").embed_texts(CAPTIONS), before)
    digest = files.digest()
    config = folder / "text_transformer" / "config.json"
    changed = {**json.loads(config.read_text()), "hidden_act": "relu"}
    config.write_text(json.dumps(changed))
    assert find_model(str(folder)).digest() != digest


def test_cocas_towers_are_cocas(home: Path) -> None:
    """The reference is open_clip's CoCa with the same weights; it cuts its texts by one token."""
    config = described(str(home / "coca.json"))["model_cfg"]
    plan = network_plan(Setup(model=str(home / "coca.json")), TrainConfig(batch_size=8))
    torch.manual_seed(4)
    whole = open_clip.CoCa(**{k: v for k, v in config.items() if k != "custom_text"}).eval()
    towers = build_network(plan.config, seed=0).eval()
    weights = {k: v for k, v in whole.state_dict().items() if not k.startswith("text_decoder.")}
    towers.load_state_dict(weights)
    tokens = torch.randint(1, 500, (4, 12))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        text = towers.encode_text(tokens, normalize=True)  # type: ignore[operator]
        image = towers.encode_image(images, normalize=True)  # type: ignore[operator]
        torch.testing.assert_close(text, whole.encode_text(tokens))
        torch.testing.assert_close(image, whole.encode_image(images))


def test_training_goes_on_from_a_model_with_a_hubs_tokenizer(home: Path) -> None:
    """Though the architecture is named by a configuration that says CLIP's, and offline."""
    first = _train(home, "clipa.json", "first")
    text = {**BLOCKS, "no_causal_mask": True, "pool_type": "last", "vocab_size": 560}
    plain = {**_configs()["clipa"], "text_cfg": text}
    (home / "plain.json").write_text(json.dumps(plain))
    second = _train(home, "plain.json", "second", init=str(first))
    assert (second / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    text = json.loads((second / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert text["hf_tokenizer_name"] == "org/tok"
    assert text["tokenizer_kwargs"] == {"strip_sep_token": True}
    again = _train(home, "first", "again")  # the folder as an architecture, weights afresh
    assert (again / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()


def test_towers_of_a_whole_coca_can_be_gone_on_from(home: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = _configs()["coca"]
    config["text_cfg"] |= {"vocab_size": 49_408}
    config["multimodal_cfg"] |= {"vocab_size": 49_408}
    torch.manual_seed(6)
    whole = open_clip.CoCa(**{k: v for k, v in config.items() if k != "custom_text"})
    save_file(
        {k: v.contiguous().clone() for k, v in whole.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    document = {"model_cfg": config, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
    folder = _train(home, "coca.json", "from coca", init=str(tmp_path), learning_rate=1e-6)
    started = json.loads((folder / "training.json").read_text())["started_from"]
    assert started == find_model(str(tmp_path)).digest()
    key = "visual.conv1.weight"
    torch.testing.assert_close(
        load_file(folder / "model.safetensors")[key], whole.state_dict()[key], atol=1e-4, rtol=0
    )


def test_the_digest_covers_what_comes_from_the_hub(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.mkdir()
    config = path / "model.json"
    config.write_text((home / "clipa.json").read_text())
    before = ContrastiveTrainer(model=str(config), batch_size=8).model_digest()
    save_tokenizer(path, ["quite other words"])
    after = ContrastiveTrainer(model=str(config), batch_size=8).model_digest()
    assert before != after
    roberta = home / "roberta.json"
    digest = ContrastiveTrainer(model=str(roberta), batch_size=8).model_digest()
    other = json.loads(roberta.read_text())
    other["text_cfg"]["hf_model_pretrained"] = False
    (path / "fresh.json").write_text(json.dumps(other))
    assert ContrastiveTrainer(model=str(path / "fresh.json"), batch_size=8).model_digest() != digest


def test_a_digest_does_not_depend_on_what_else_is_in_the_hubs_cache(
    home: Path, tmp_path: Path
) -> None:
    config = _configs()["roberta"]
    config["text_cfg"]["hf_model_pretrained"] = False
    path = tmp_path / "model.json"
    path.write_text(json.dumps(config))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((home / "roberta" / "config.json").read_text())
    found = []
    for number, given in enumerate(([bare], [home / "roberta"], [home / "roberta", home / "tok"])):
        repositories = {"org/tok": [home / "tok"], "org/roberta": given}
        with hub_cache(tmp_path / str(number), repositories):
            plan = network_plan(Setup(model=str(path)), TrainConfig(batch_size=8))
            assert plan.start == ""
            found.append(ContrastiveTrainer(model=str(path), batch_size=8).model_digest())
    assert len(set(found)) == 1


def test_a_tokenizer_whose_class_only_its_models_configuration_names(
    home: Path, tmp_path: Path
) -> None:
    """As bert-base-uncased's and roberta-base's: without the class there is no padding token."""
    lean = tmp_path / "lean"
    lean.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "card", *COLORS]
    (lean / "vocab.txt").write_text("\n".join(words) + "\n")
    (lean / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    kind = {"model_type": "bert", "_name_or_path": "/home/someone/bert"}
    (lean / "config.json").write_text(json.dumps(kind))
    with hub_cache(tmp_path / "cache", {"org/tok": [lean]}):
        folder = _train(home, "clipa.json", "lean")
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "bert"}
    with hub_cache(tmp_path / "empty", {}):
        files = find_model(str(folder))
        tokens = load_model(files, device="cpu").tokenizer(["A red card."])
    reference = HFTokenizer(str(lean), context_length=16, strip_sep_token=True)
    assert torch.equal(tokens, reference(["A red card."]))
    assert tokens[0, :6].tolist() == [2, 6, words.index("red"), 7, 5, 0]
    digest = files.digest()
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    assert find_model(str(folder)).digest() != digest


def test_weights_that_hold_numbers_of_places_can_be_gone_on_from(home: Path) -> None:
    """As open_clip's roberta models on the hub do."""
    from safetensors.torch import save_file

    folder = _train(home, "roberta.json", "places")
    weights = load_file(folder / "model.safetensors")
    weights["text.transformer.embeddings.position_ids"] = torch.arange(96)[None]
    save_file(weights, folder / "model.safetensors")
    again = _train(home, "roberta.json", "after places", init=str(folder))
    assert load_file(again / "model.safetensors").keys() == weights.keys() - {
        "text.transformer.embeddings.position_ids"
    }


def test_what_cannot_be_had_or_chosen_is_refused_before_training(home: Path) -> None:
    data = Dataset(name="train", shards=("/no/such.tar",), digest="00", num_rows=64)
    trainer = ContrastiveTrainer(model="ViT-B-16-SigLIP", batch_size=16)
    with pytest.raises(SetupError, match=r"timm/ViT-B-16-SigLIP cannot be had"):
        trainer.check(data, 1600)
    with pytest.raises(SetupError, match=r"text tower roberta-base cannot be had"):
        ContrastiveTrainer(model="roberta-ViT-B-32", batch_size=16).check(data, 1600)
    given = ContrastiveTrainer(model=str(home / "clipa.json"), vocabulary=600, batch_size=16)
    with pytest.raises(RecipeError, match=r"vocabulary=600: .* tokenizer org/tok, .* as it is"):
        given.check(data, 1600)


@pytest.mark.parametrize("name", ["siglip", "coca", *TRANSFORMERS])
def test_parts_of_a_batch_can_be_asked_for(name: str, home: Path) -> None:
    """To see whether rows of a pass are mixed, the network is built without its weights."""
    config = TrainConfig(batch_size=8, micro_batch_size=4)
    plan = network_plan(Setup(model=str(home / f"{name}.json")), config)
    assert plan.config["embed_dim"] in (24, 64)


def _changed(home: Path, name: str, path: Path, **text: Any) -> Path:
    """Write a configuration with other values in its text_cfg; None leaves one out."""
    config = json.loads((home / f"{name}.json").read_text())
    values = {**config["text_cfg"], **text}
    config["text_cfg"] = {key: value for key, value in values.items() if value is not None}
    path.write_text(json.dumps(config))
    return path


def test_what_does_not_fit_together_is_refused(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    bare = _changed(home, "roberta", path, hf_tokenizer_name=None)
    with pytest.raises(RecipeError, match=r"text tower org/roberta and no tokenizer; add hf_tok"):
        _train(home, str(bare), "bare")
    long = _changed(home, "roberta", path, context_length=128)
    with pytest.raises(SetupError, match=r"96 places for tokens, .* 128; set context_length"):
        _train(home, str(long), "long")
    big = save_tokenizer(tmp_path / "big", CAPTIONS, vocabulary=400)
    document = json.loads((big / "tokenizer.json").read_text())
    document["model"]["vocab"]["\u0120card"] = 5000
    (big / "tokenizer.json").write_text(json.dumps(document))
    other = _changed(home, "roberta", path, hf_tokenizer_name=str(big))
    with pytest.raises(SetupError, match=r"gives token 5000, .* vectors for 400: .* set vocab"):
        _train(home, str(other), "other")
    odd = {**_configs()["clipa"], "embed_dims": 24}
    path.write_text(json.dumps(odd))
    with pytest.raises(SetupError, match=r"cannot build the architecture: .*embed_dims"):
        _train(home, str(path), "odd")


def test_tokenizers_are_tried_before_any_shard_is_read(home: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text("{}")
    data = Dataset(name="train", shards=("/no/such.tar",), digest="00", num_rows=64)
    for text, problem in (
        ({"hf_tokenizer_name": str(broken)}, "cannot be loaded"),
        ({"tokenizer_kwargs": 5}, "tokenizer_kwargs is no mapping"),
        ({"tokenizer_kwargs": {"clean": "unheard-of"}}, "cannot be loaded"),
    ):
        path = _changed(home, "clipa", tmp_path / "model.json", **text)
        with pytest.raises(SetupError, match=problem):
            ContrastiveTrainer(model=str(path), batch_size=16).check(data, 1600)


def test_a_text_tower_from_a_folder_goes_on_without_it(home: Path, tmp_path: Path) -> None:
    """What was written holds its configuration, under a name that is on no hub."""
    tower = save_transformer(tmp_path / "my-tower", "roberta")
    path = _changed(home, "roberta", tmp_path / "model.json", hf_model_name=str(tower))
    first = _train(home, str(path), "of a folder")
    shutil.rmtree(tower)
    text = json.loads((first / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert (text["hf_model_name"], text["hf_model_pretrained"]) == ("my-tower", False)
    afresh = _train(home, str(first), "afresh")
    further = _train(home, str(first), "further", init=str(first))
    for folder in (afresh, further):
        assert load_model(find_model(str(folder)), device="cpu").network.vocab_size == 400


def test_a_model_goes_on_with_its_own_context(home: Path, tmp_path: Path) -> None:
    """A text tower of the hub has no table of places that would tell."""
    first = _train(home, "mt5.json", "sixteen")
    path = _changed(home, "mt5", tmp_path / "model.json", context_length=12)
    second = _train(home, str(path), "twelve", init=str(first))
    assert load_model(find_model(str(second)), device="cpu").tokenizer.context_length == 16


def test_a_tokenizer_that_is_a_sentencepiece_model_only(home: Path, tmp_path: Path) -> None:
    """As mt5-base's and nllb's; the reference is the library that made it."""
    import sentencepiece

    folder, model = tmp_path / "spiece", io.BytesIO()
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 50), model_writer=model, vocab_size=50, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    kind = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    kind |= {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    options = {"hf_tokenizer_name": str(folder), "tokenizer_kwargs": None}
    path = _changed(home, "clipa", tmp_path / "model.json", **options)
    written = _train(home, str(path), "spiece")
    tokens = load_model(find_model(str(written)), device="cpu").tokenizer(CAPTIONS).tolist()
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for caption, row in zip(CAPTIONS, tokens, strict=True):
        expected = [*reference.encode(caption), 1]
        assert row == (expected + [0] * 16)[:16]


def test_every_architecture_of_open_clip_can_be_planned(home: Path, tmp_path: Path) -> None:
    """With what they name on the hub in its cache; none is refused, all are of known classes."""
    wanted: dict[str, list[Path]] = {}
    for name in open_clip.list_models():
        text = described(name)["model_cfg"]["text_cfg"]
        if text.get("hf_tokenizer_name"):
            wanted.setdefault(text["hf_tokenizer_name"], []).append(home / "tok")
        if text.get("hf_model_name"):
            wanted.setdefault(text["hf_model_name"], []).append(home / "roberta")
    assert {"timm/ViT-B-16-SigLIP", "bert-base-uncased", "roberta-base"} <= wanted.keys()
    config = TrainConfig(num_samples=16, batch_size=16)
    names = set()
    with hub_cache(tmp_path, wanted):
        for name in open_clip.list_models():
            plan = network_plan(Setup(model=name), config)
            kind = open_clip.CustomTextCLIP if "custom_text" in plan.config else open_clip.CLIP
            taken = {"custom_text", *kind.__init__.__code__.co_varnames}
            assert set(plan.config) <= taken, name
            names.add(name)
    assert len(names) == len(open_clip.list_models()) > 140
