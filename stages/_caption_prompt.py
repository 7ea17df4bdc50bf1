"""What a server is asked: a text with the row's own words in the place of columns' names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.stages._conversations import Kind
from winnow.stages._written_turns import INSTRUCTIONS

_LIST = ":list"
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NO_NAME = re.compile(r"^\s|\s$|[\"'\n]|^$")


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a column's words go. many: a list<string>, its elements a line each."""

    column: str
    many: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text in parts: words that stand as they are, and places of columns."""

    parts: tuple[str | Slot, ...]

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The columns that are named, in their order, with their types."""
        slots = [part for part in self.parts if isinstance(part, Slot)]
        return {s.column: pa.list_(pa.string()) if s.many else pa.string() for s in slots}

    @property
    def constant(self) -> str:
        """The words that stand as they are: all of the text where it names no column."""
        return "".join(part for part in self.parts if isinstance(part, str))

    def texts(self, batch: pa.RecordBatch) -> list[str]:
        """Return every row's text; a null, in a list too, is no words. Braces in them are words."""
        values = {name: batch.column(name).to_pylist() for name in self.columns}
        return [
            "".join(
                part if isinstance(part, str) else _words(values[part.column][row])
                for part in self.parts
            )
            for row in range(batch.num_rows)
        ]


def asked_text(prompt: str | None, instruction: Kind | None) -> str | None:
    """Return what is asked as a recipe writes it; None = what the engine asks by itself.

    The packaged prompt of an instruction comes after the recipe's own words, a line between.
    """
    if instruction is None:
        return prompt
    return "\n\n".join(filter(None, (prompt, INSTRUCTIONS[instruction])))


def parse_prompt(text: str) -> Prompt:
    """Return the parts of a text in which "{column}" and "{column:list}" stand for columns.

    "{{" and "}}" are a brace each. RecipeError for one brace alone, for what can be no column's
    name, and for a column that is named as a text and as a list.
    """
    parts: list[str | Slot] = []
    words, end = "", 0
    for token in _TOKEN.finditer(text):
        words += text[end : token.start()]
        end = token.end()
        if token[0] in ("{{", "}}"):
            words += token[0][0]
            continue
        name = (token[1] or "").removesuffix(_LIST)
        if _NO_NAME.search(name):
            msg = (
                f"caption: prompt has {token[0]!r}, which names no column; write a brace that is "
                "meant as it is twice, {{ or }}"
            )
            raise RecipeError(msg)
        parts += [*filter(None, [words]), Slot(name, many=token[1] != name)]
        words = ""
    found = Prompt((*parts, *filter(None, [words + text[end:]])))
    _check_types([part for part in found.parts if isinstance(part, Slot)])
    return found


def named_column(text: str) -> str | None:
    """Return the first "{column}" of a text, with its braces; None where it has none."""
    tokens = (token for token in _TOKEN.finditer(text) if token[1] is not None)
    return next((t[0] for t in tokens if not _NO_NAME.search(t[1].removesuffix(_LIST))), None)


def _check_types(slots: Sequence[Slot]) -> None:
    lists = {slot.column for slot in slots if slot.many}
    both = [slot.column for slot in slots if not slot.many and slot.column in lists]
    if both:
        msg = f"caption: prompt has {{{both[0]}}} and {{{both[0]}{_LIST}}}; it is text or a list"
        raise RecipeError(msg)


def _words(value: str | Sequence[str | None] | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return "\n".join(element for element in value if element is not None)
