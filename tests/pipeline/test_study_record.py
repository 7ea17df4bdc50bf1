"""Since when a study names what it compares: recorded once, and every change of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from winnow.pipeline.storage import Storage
from winnow.pipeline.study import load_study
from winnow.pipeline.study_record import EARLY, LATE, record_design, told

from .studies import write_study

METRICS = ["retrieval.mean_recall@1"]


def results(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / "w" / "trials" / f"{number:032}" / "test-0123456789abcdef").mkdir(parents=True)


def test_what_is_recorded_before_the_first_trial_was_named_before_the_run(tmp_path: Path) -> None:
    study, storage = load_study(write_study(tmp_path)), Storage(str(tmp_path / "w"))
    first = record_design(storage, study)
    assert first.named == EARLY
    assert first.sentence.endswith(", before the first trial.")
    results(tmp_path, 3)
    assert record_design(storage, study) == first  # the same study again: nothing is new


def test_a_metric_that_was_added_later_is_not_called_early(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "w"))
    record_design(storage, load_study(write_study(tmp_path)))
    results(tmp_path, 3)
    metrics = [*METRICS, "zero_shot.accuracy@1"]
    changed = write_study(tmp_path, primary={"arm": "curated", "metrics": metrics})
    found = record_design(storage, load_study(changed))
    assert found.named == LATE
    assert found.sentence.endswith(", when 3 trials had results: primary.")
    # To go back to what was named at first is no less a choice.
    assert record_design(storage, load_study(write_study(tmp_path))).named == LATE


def test_more_seeds_leave_the_primary_contrast_early(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "w"))
    record_design(storage, load_study(write_study(tmp_path, seeds=[0, 1])))
    results(tmp_path, 1)
    found = record_design(storage, load_study(write_study(tmp_path, seeds=[0, 1, 2])))
    assert found.named == EARLY
    assert found.sentence.endswith(", when 1 trial had results: seeds.")


def test_results_of_before_records_were_kept_are_told(tmp_path: Path) -> None:
    results(tmp_path, 1200)
    found = record_design(Storage(str(tmp_path / "w")), load_study(write_study(tmp_path)))
    assert found.named == LATE
    assert found.sentence.endswith(", when 1,200 trials had results.")


def test_a_trial_without_a_measured_test_set_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "w" / "trials" / "0" / "validation-0").mkdir(parents=True)
    found = record_design(Storage(str(tmp_path / "w")), load_study(write_study(tmp_path)))
    assert found.named == EARLY


def test_every_change_is_told() -> None:
    names: dict[str, Any] = {"primary": {"arm": "a"}, "arms": ["a"], "seeds": [0]}
    entries = [
        {"date": "2030-01-01", "results": 0, "names": names},
        {"date": "2030-01-02", "results": 2, "names": {**names, "arms": ["a", "b"]}},
        {"date": "2030-01-03", "results": 4, "names": {**names, "arms": ["a"], "seeds": [1]}},
    ]
    found = told(entries)
    assert found.named == EARLY
    assert found.sentence == (
        "Recorded on 2030-01-01, before the first trial. "
        "Changed on 2030-01-02, when 2 trials had results: arms. "
        "Changed on 2030-01-03, when 4 trials had results: arms, seeds."
    )
