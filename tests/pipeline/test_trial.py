"""What names a trial and its results, and how its shards come to a local disk.

Trials themselves are tested in ``test_trial_unit.py``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from winnow.contracts.errors import SetupError
from winnow.pipeline.storage import Storage
from winnow.pipeline.trial import TrialSpec, evaluation_folder, exported, local_dataset
from winnow.stages.evaluate.retrieval import Retrieval
from winnow.stages.evaluate.zero_shot import ZeroShot
from winnow.stages.train.contrastive import ContrastiveTrainer

TARS = {"00000.tar": b"first" * 99, "00001.tar": b"second"}


def export(storage: Storage, folder: str, tars: dict[str, bytes], sizes: list[int]) -> None:
    files = [{"name": name, "sha256": data.hex()[:64]} for name, data in tars.items()]
    documents = {
        "sizes.json": dict(zip(tars, sizes, strict=True)),
        "files.json": {"files": [*files, {"name": "card.md", "sha256": folder}]},
    }
    written = {name: json.dumps(value).encode() for name, value in documents.items()} | tars
    for name, data in written.items():
        with storage.create(f"{folder}/{name}") as commit:
            commit.file.write(data)


def test_an_export_is_its_tars_wherever_it_lies(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "a workspace"))
    export(storage, "export/one", TARS, [4, 0])
    export(storage, "export/two", TARS, [4, 0])
    export(storage, "export/other", {**TARS, "00001.tar": b"2"}, [4, 0])
    export(storage, "export/empty", TARS, [0, 0])
    one, two, other = (exported(storage, f"export/{n}", n) for n in ("one", "two", "other"))
    assert (one.tars, one.num_rows) == (("00000.tar", "00001.tar"), 4)
    assert one.digest == two.digest != other.digest
    with pytest.raises(SetupError, match="empty: the selection is empty"):
        exported(storage, "export/empty", "empty")


def test_shards_of_a_store_are_fetched_once(tmp_path: Path) -> None:
    storage = Storage("memory://trials of \u00fc")
    export(storage, "export/raw", TARS, [3, 2])
    data, cache = exported(storage, "export/raw", "raw"), tmp_path / "my cache"
    found = local_dataset(storage, data, cache)
    assert [Path(path).read_bytes() for path in found.shards] == list(TARS.values())
    assert [Path(path).name for path in found.shards] == list(TARS)
    assert (found.name, found.digest, found.num_rows) == ("raw", data.digest, 5)
    assert sorted(p.name for p in cache.rglob("*") if p.is_file()) == sorted(TARS)
    fsspec.filesystem("memory").rm("/trials of \u00fc", recursive=True)
    assert local_dataset(storage, data, cache) == found
    with pytest.raises(FileNotFoundError):
        local_dataset(storage, data, tmp_path / "another")
    assert not list((tmp_path / "another").rglob("*.tar"))


def test_all_that_decides_a_trial_names_it_and_nothing_else(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    export(storage, "export/one", TARS, [4, 1])
    data = exported(storage, "export/one", "one")
    spec = TrialSpec(trainer=ContrastiveTrainer(model="nano"), train=data, num_samples=128, seed=0)

    def named(**changes: Any) -> str:
        return dataclasses.replace(spec, **changes).fingerprint()

    same = [
        {"train": dataclasses.replace(data, name="x", folder="y", num_rows=9)},
        {"trainer": ContrastiveTrainer(model="nano", cache_folder="/x")},
    ]
    other = [
        {"train": dataclasses.replace(data, digest="0" * 32)}, {"num_samples": 129}, {"seed": 1},
        {"trainer": ContrastiveTrainer(model="nano", batch_size=3)},
        {"trainer": ContrastiveTrainer(model="small")},
    ]  # fmt: skip
    assert {named(**change) for change in same} == {spec.fingerprint()}
    assert len({spec.fingerprint(), *(named(**change) for change in other)}) == 6
    folders = [
        evaluation_folder(spec, evaluations, dataclasses.replace(data, digest=digest))
        for evaluations in (
            {"r": Retrieval()},
            {"q": Retrieval()},
            {"r": Retrieval(), "z": ZeroShot(label="a")},
        )
        for digest in ("1" * 32, "2" * 32)
    ]
    assert len(set(folders)) == 6
    assert all(folder.startswith(f"trials/{spec.fingerprint()}/one-") for folder in folders)
