"""What evaluations of a captioner share: the rows that they can use, and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.trial import Captioner, Generated, Score
from winnow.stages.evaluate._rows import column_values, count_score


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """Samples that have every column that was asked for, sorted by key.

    rows: their places in ``Captioner.rows``. table: those rows. num_left_out: of num_samples.
    """

    rows: list[int]
    table: pa.Table
    num_left_out: int
    num_samples: int

    @property
    def keys(self) -> list[str]:
        """The samples' keys, rising."""
        return self.table["key"].to_pylist()

    def __len__(self) -> int:
        return len(self.rows)

    def left_out_score(self, who: str, others: int = 0) -> Score:
        """Return how many samples could not be measured: these, and ``others``."""
        left_out = self.num_left_out + others
        return count_score(f"{who}.num_left_out", left_out, self.num_samples)


def complete_pictures(
    who: str, subject: Captioner, columns: Sequence[str], *, least: int = 1
) -> Pictures:
    """Return the samples without a null in ``columns`` (a caption of white space is null).

    Sorted by key, so that the order of the samples in the set cannot change a result.

    Fails: SetupError where a column is missing, keys repeat, or fewer than ``least`` samples are
    left.
    """
    rows, num_rows = subject.rows, subject.rows.num_rows
    usable = pa.array([True] * num_rows, pa.bool_())
    for name in columns:
        if num_rows:
            column_values(who, rows, name)
            usable = pc.and_(usable, pc.is_valid(rows[name].combine_chunks()))
            if name == "caption":
                trimmed = pc.utf8_trim_whitespace(rows[name].combine_chunks())
                usable = pc.and_(usable, pc.fill_null(pc.not_equal(trimmed, ""), False))
    if pc.count_distinct(rows["key"], mode="all").as_py() < num_rows:
        msg = f"{who}: some of the set's {num_rows} samples have the same key; export the set anew"
        raise SetupError(msg)
    kept = [i for i in pc.sort_indices(rows["key"]).to_pylist() if usable[i].as_py()]
    if len(kept) < least:
        has = " and ".join(columns)
        msg = f"{who}: {len(kept)} of {num_rows} samples have {has}; it takes {least} or more"
        raise SetupError(msg)
    return Pictures(
        rows=kept,
        table=rows.take(pa.array(kept, pa.int64())),
        num_left_out=num_rows - len(kept),
        num_samples=num_rows,
    )


def ask(
    who: str, subject: Captioner, rows: Sequence[int], prompts: Sequence[str], max_tokens: int
) -> list[Generated]:
    """Return the model's answers, one per row and prompt.

    Fails: ShardError, not retryable, for a model that gives another number of answers.
    """
    answers = subject.generate(rows, prompts, max_tokens)
    if len(answers) != len(rows):
        msg = f"the model gave {len(answers)} answers to {len(rows)} questions"
        raise ShardError(msg, stage=f"evaluate {who}", retryable=False)
    return answers


def described(
    who: str, subject: Captioner, pictures: Pictures, prompt: str, max_tokens: int
) -> list[Generated]:
    """Return the model's answer to one prompt about every picture."""
    return ask(who, subject, pictures.rows, [prompt] * len(pictures), max_tokens)


def remembering(subject: Captioner) -> Captioner:
    """Return the captioner with a memory of its answers: several evaluations ask the same."""
    known: dict[tuple[int, str, int], Generated] = {}

    def generate(rows: Sequence[int], prompts: Sequence[str], max_tokens: int) -> list[Generated]:
        wanted = [(row, prompt, max_tokens) for row, prompt in zip(rows, prompts, strict=True)]
        new = [question for question in dict.fromkeys(wanted) if question not in known]
        if new:
            places, texts = [q[0] for q in new], [q[1] for q in new]
            known.update(zip(new, subject.generate(places, texts, max_tokens), strict=True))
        return [known[question] for question in wanted]

    return replace(subject, generate=generate)


def check_prompt(who: str, prompt: str) -> None:
    """Refuse an empty prompt."""
    if not prompt.strip():
        msg = f"{who}: the prompt is empty; use one like 'Describe the picture.'"
        raise RecipeError(msg)
