"""Real consumers, as the dataset card tells people to use them: the card's own code is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from winnow.stages.export._sidecars import is_pickle

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
# open_clip_train 3 is made for webdataset <= 0.2.86 (its extra [training] says so): newer ones
# yield an end-of-shard marker that it takes for a sample. The wrapper turns that marker off where
# it exists, registers the tiny model, and leaves open_clip_train alone.
TRAIN = """
import functools, sys
import open_clip, webdataset.tariterators as tars
if "eof_value" in tars.tar_file_expander.__code__.co_varnames:
    tars.tar_file_expander = functools.partial(tars.tar_file_expander, eof_value=None)
import open_clip_train.main
open_clip.add_model_config(sys.argv[1])
open_clip_train.main.main(sys.argv[2:])
"""


def code_of(folder: Path, language: str) -> list[str]:
    """Return the code blocks of the folder's card."""
    text = (folder / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(work: Path, *command: str) -> str:
    """Run a command in a folder, offline, with its caches there; return what it printed."""
    environment = {
        **os.environ,
        "HF_HOME": str(work / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout + result.stderr


def test_open_clip_trains_on_the_shards(tars: Path, tmp_path: Path) -> None:
    pytest.importorskip("open_clip_train")
    (command,) = code_of(tars, "bash")
    arguments = shlex.split(command.replace("\\\n", " "))
    assert arguments[:3] == ["python", "-m", "open_clip_train.main"]
    tiny = {"--model": "tiny-clip", "--batch-size": "8", "--workers": "0", "--epochs": "1"}
    for option, value in tiny.items():
        arguments[arguments.index(option) + 1] = value
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    (tmp_path / "train.py").write_text(TRAIN)
    extra = ["--logs", str(tmp_path / "logs"), "--name", "step", "--device", "cpu"]
    extra += ["--precision", "fp32", "--lr", "1e-3", "--warmup", "1"]
    script = [str(tmp_path / "train.py"), str(tmp_path / "tiny-clip.json")]
    work = tmp_path / "export"
    shutil.copytree(tars, work)
    log = run(work, sys.executable, *script, *arguments[3:], *extra)
    # 40 samples, which only sizes.json can have told it: there is no --train-num-samples.
    assert re.search(r"Train Epoch: 0 \[40/40 \(100%\)\]", log), log[-4000:]
    losses = [float(x) for x in re.findall(r"Contrastive_loss: ([0-9.]+)", log)]
    assert losses
    assert all(0 < loss < 20 for loss in losses)
    assert (tmp_path / "logs/step/checkpoints/epoch_1.pt").exists()
    assert "Handling webdataset error" not in log


# One process for all: it starts slowly, and its cache is chosen when it starts.
HUGGING_FACE = """
import json, os, sys
from datasets import load_dataset
found = {}
PLAIN = ("tars", "mixed", "parquets", "llavas")
def summary(samples, json_of):
    media = [v.size for v in samples[-1].values() if hasattr(v, "convert")]
    return [len(samples), json_of(samples[-1])["image_error"], media]
for kind, (folder, snippet, *others) in json.loads(sys.argv[1]).items():
    os.chdir(folder)
    json_of = (lambda s: s) if kind == "parquets" else (lambda s: s["json"])
    for mode in ("streaming", "prepared") if kind in PLAIN else ():
        scope = {}
        exec(snippet.replace("streaming=True", f"streaming={mode == 'streaming'}"), scope)
        samples = list(scope["dataset"])
        found[f"{kind} {mode}"] = samples if kind == "llavas" else summary(samples, json_of)
    if kind == "tars":
        bare = load_dataset("webdataset", data_files="*.tar", split="train", streaming=True)
        samples = list(bare)
        found["bare"] = [len(samples), samples[3]["txt"], samples[3]["jpg"].size]
    if kind not in PLAIN:
        # The card's second snippet, without which sound would need a package for its decoder.
        scope = {}
        exec(snippet.replace("sample = next(iter(dataset))", ""), scope)
        exec(others[0], scope)
        found[kind] = [
            {name: value.size if hasattr(value, "convert") else
             value["bytes"].hex() if isinstance(value, dict) else value and value.hex()
             for name, value in s.items() if name in ("jpg", "wav", "image", "audio")}
            for s in scope["dataset"]
        ]
    if kind == "parquets":
        named = load_dataset("parquet", data_files="0*.parquet", split="train")
        pixel = named[7]["image"].getpixel((0, 0))
        found["named"] = [repr(named.features["image"]), list(named["key"]), pixel]
print("RESULT " + json.dumps(found))
"""


def result_of(log: str) -> Any:
    (line,) = [line for line in log.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture(scope="module")
def hugging_face(
    tars: Path,
    mixed_tars: Path,
    parquets: Path,
    llavas: Path,
    triple_tars: Path,
    triple_parquets: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """What datasets loads from the exports, each as its card says."""
    pytest.importorskip("datasets")
    folders = {"tars": tars, "mixed": mixed_tars, "parquets": parquets, "llavas": llavas}
    folders |= {"triple tars": triple_tars, "triple parquets": triple_parquets}
    jobs = {kind: (str(path), *code_of(path, "python")[:2]) for kind, path in folders.items()}
    home = tmp_path_factory.mktemp("hugging-face")
    return result_of(run(home, sys.executable, "-c", HUGGING_FACE, json.dumps(jobs)))


@pytest.mark.parametrize("mode", ["streaming", "prepared"])
@pytest.mark.parametrize("kind", ["tars", "mixed", "parquets"])
def test_hugging_face_loads_the_folder(hugging_face: Any, kind: str, mode: str) -> None:
    # The last row has an error that is null in every other row: inference would miss its type.
    assert hugging_face[f"{kind} {mode}"] == [40, "late", [[32, 24]]]


@pytest.mark.parametrize(
    ("kind", "image", "audio"),
    [("triple tars", "jpg", "wav"), ("triple parquets", "image", "audio")],
)
def test_hugging_face_loads_triples_with_their_sound_as_bytes(
    hugging_face: Any, triples: pa.RecordBatch, kind: str, image: str, audio: str
) -> None:
    expected = [
        {
            image: None if row["image"] is None else [32, 24],
            audio: None if row["audio"] is None else row["audio"].hex(),
        }
        for row in triples.to_pylist()
    ]
    assert hugging_face[kind] == expected


@pytest.mark.parametrize("mode", ["streaming", "prepared"])
def test_hugging_face_loads_the_conversations(hugging_face: Any, llavas: Path, mode: str) -> None:
    expected = json.loads((llavas / "llava.json").read_text(encoding="utf-8"))
    assert hugging_face[f"llavas {mode}"] == expected
    assert len(expected) == 40


def test_hugging_face_streams_the_tars_without_the_card(hugging_face: Any) -> None:
    caption = 'a caption, "quoted" \u00e4\u6f22\U0001f431 number 3'
    assert hugging_face["bare"] == [40, caption, [32, 24]]


def test_hugging_face_reads_the_parquet_files_by_name(
    hugging_face: Any, rows: pa.RecordBatch
) -> None:
    feature, keys, pixel = hugging_face["named"]
    assert feature.startswith("Image(")
    assert keys == rows["key"].to_pylist()
    assert all(abs(a - b) < 12 for a, b in zip(pixel, (35, 77, 161), strict=True))


@pytest.mark.parametrize("kind", ["tars", "mixed_tars"])
def test_webdataset_reads_the_shards_as_the_card_says(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset")
    folder = request.getfixturevalue(kind)
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {}
    exec(code_of(folder, "python")[1], scope)
    assert scope["media"].size == (32, 24)
    assert scope["text"] == 'a caption, "quoted" \u00e4\u6f22\U0001f431 number 0'
    assert scope["annotations"]["width"] == 32


def test_webdataset_iterates_without_unpickling(
    tars: Path, rows: pa.RecordBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    webdataset = pytest.importorskip("webdataset")
    from webdataset import autodecode

    # webdataset has no switch: its decoder unpickles by extension, so those decoders are taken out.
    for extension in ("pyd", "pickle", "pth"):
        monkeypatch.delitem(autodecode.decoders, extension, raising=False)
    urls = [str(path) for path in sorted(tars.glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("pil")
    samples = list(dataset)
    assert [s["__key__"] for s in samples] == rows["key"].to_pylist()
    assert [s["txt"] for s in samples] == rows["text"].to_pylist()
    assert [s["json"]["uid"] for s in samples] == [u.hex() for u in rows["uid"].to_pylist()]
    assert {s["jpg"].mode for s in samples} == {"RGB"}
    assert {k for s in samples for k in s if not k.startswith("__")} == {"jpg", "txt", "json"}


def test_no_member_is_a_pickle(tars: Path, mixed_tars: Path) -> None:
    for path in [*tars.glob("*.tar"), *mixed_tars.glob("*.tar")]:
        with tarfile.open(path) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                assert not is_pickle(info.name.partition(".")[2], file.read(2))
