"""What describes a selection: its captions counted one by one, and scipy's entropy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import entropy

from winnow.contracts.errors import SetupError
from winnow.pipeline.storage import Storage
from winnow.pipeline.study_describe import check_described, means, variety
from winnow.pipeline.trial import Exported

TEXTS = ["a cat", "a dog", "a cat", "", None, "a bird", "a cat"]
LISTS = [["a cat", "a dog"], [], None, ["a cat", None, ""], ["a bird"], [], []]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Storage, Exported]:
    columns: dict[str, Any] = {
        "text": TEXTS,
        "several": pa.array(LISTS, pa.list_(pa.string())),
        "same": ["a cat"] * 7,
        "score": [1.0, 2.0, None, 4.0, 5.0, 6.0, 0.0],
    }
    (tmp_path / "export").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "export" / "manifest.parquet", row_group_size=2)
    data = Exported(name="train", folder="export", tars=(), digest="", num_rows=7)
    return Storage(str(tmp_path)), data


@pytest.mark.parametrize("column", ["text", "several", "same"])
def test_variety_is_that_of_the_captions_that_are_there(
    made: tuple[Storage, Exported], column: str
) -> None:
    lists = {"text": [[t] for t in TEXTS], "several": LISTS, "same": [["a cat"]] * 7}[column]
    counts = Counter(text for texts in lists for text in texts or [] if text)
    found = variety(*made, column)
    assert found["unique captions"] == len(counts)
    assert found["caption entropy (bits)"] == pytest.approx(entropy([*counts.values()], base=2))
    assert str(found["caption entropy (bits)"])[0] != "-"


def test_no_captions_have_no_entropy(made: tuple[Storage, Exported]) -> None:
    assert variety(*made, "absent") == {"unique captions": 0.0, "caption entropy (bits)": None}


def test_means_are_of_what_is_there(made: tuple[Storage, Exported]) -> None:
    assert means(*made, ["score"]) == {"score": 3.0}
    check_described(made[0], ["score"], made[1])
    with pytest.raises(SetupError, match="text is a string, which has no mean"):
        check_described(made[0], ["text"], made[1])
    with pytest.raises(SetupError, match="there is no column 'other'"):
        check_described(made[0], ["other"], made[1])
