"""Captioners to measure: little models of words with deterministic answers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.contracts.trial import Captioner, Generated

Kind = Literal["perfect", "noisy", "blind", "silent"]
NAMES = ("cat", "dog", "hot dog", "red apple", "slice of pizza", "knife", "bus", "mouse")
COLORS = ("red", "blue", "green")


def share(*fields: object) -> float:
    """A number in [0, 1) that depends on the fields alone."""
    digest = hashlib.blake2b(repr(fields).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def pick(values: Sequence[Any], *fields: object) -> Any:
    return values[int(share(*fields) * len(values))]


def world(size: int, seed: int = 0) -> pa.Table:
    """Rows with objects, groups, relations, a kind and a caption that states them."""
    rows = []
    for index in range(size):
        names = sorted(
            (n for n in NAMES if share(seed, index, n) < 0.45), key=lambda n: share(index, n)
        )
        names = names or [pick(NAMES, seed, index)]
        groups = [
            {
                "name": name,
                "count": 1 + int(share(seed, index, name, "count") * 2),
                "color": pick(COLORS, seed, index, name, "color"),
            }
            for name in names
        ]
        relations = [
            {"subject": a, "predicate": pick(("above", "left of"), seed, index, a), "object": b}
            for a, b in zip(names, names[1:], strict=False)
        ]
        rows.append(
            {
                "key": f"k{index:05d}",
                "caption": sentence(groups),
                "objects": [g["name"] for g in groups for _ in range(g["count"])],
                "groups": groups,
                "relations": relations,
                "conversations": conversation(groups),
                "kind": pick(("one", "two", "three"), seed, index, "kind"),
            }
        )
    return pa.Table.from_pylist(rows)


def conversation(groups: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Of a thing that is there: whether it is, how many and which color; and of one that is not."""
    group, absent = groups[0], "wooden spoon"
    number = "two" if group["count"] == 2 else "one"
    turns = [
        (f"<image>\nIs there a {group['name']} in the picture?", "Yes, there is."),
        (f"How many {plural(group['name'])} are there?", f"There are {number}."),
        (f"What color is the {group['name']}?", f"The {group['name']} is {group['color']}."),
        (f"Is there a {absent} in the picture?", f"No, there is no {absent}."),
    ]
    names = ("human", "gpt")
    return [{"from": n, "value": v} for turn in turns for n, v in zip(names, turn, strict=True)]


def sentence(groups: Sequence[dict[str, Any]]) -> str:
    """ "There are two red dogs. There is a blue cat." """
    return " ".join(
        f"There are two {g['color']} {plural(g['name'])}."
        if g["count"] == 2
        else f"There is a {g['color']} {g['name']}."
        for g in groups
    )


def plural(name: str) -> str:
    known = {"slice of pizza": "slices of pizza", "knife": "knives", "bus": "buses"}
    return {**known, "mouse": "mice"}.get(name, f"{name}s")


def captioner(rows: pa.Table, kind: Kind = "noisy", use: str = "attention_mass") -> Captioner:
    """A model of these rows. perfect: knows all of them. noisy: is wrong now and then. blind: says
    the same of every picture. silent: says nothing."""
    table = rows.to_pylist()

    def generate(places: Sequence[int], prompts: Sequence[str], most: int) -> list[Generated]:
        found = []
        for place, prompt in zip(places, prompts, strict=True):
            words = answer(table[place], prompt).split()
            text = " ".join(words[:most])
            found.append(
                Generated(
                    text=text,
                    log_likelihood=-float(len(words)),
                    num_tokens=len(words),
                    finished=len(words) <= most,
                )
            )
        return found

    def answer(row: dict[str, Any], prompt: str) -> str:
        asked = re.fullmatch(r"Is there an? (.+) in the picture\?", prompt)
        said = talked(row).get(prompt)
        if kind == "silent":
            return ""
        if said is not None and kind == "perfect":
            return said
        if asked:
            if kind == "blind":
                return "Yes, there is."
            wrong = kind == "noisy" and share(row["key"], prompt) < 0.3
            if kind == "noisy" and share(row["key"], prompt) < 0.05:
                return "Perhaps."
            return "Yes, there is." if (asked[1] in row["objects"]) != wrong else "No."
        if said is not None:
            is_wrong = kind == "blind" or share(row["key"], prompt) < 0.3
            return "There are two." if is_wrong else said
        if kind == "blind":
            return "There is a red dog. There are two blue cats."
        if kind == "perfect" or not row["groups"]:
            return row["caption"] or ""
        return sentence([slip(g, row["key"]) for g in row["groups"]])

    def talked(row: dict[str, Any]) -> dict[str, str]:
        said = [turn["value"] for turn in row.get("conversations") or ()]
        return dict(zip(said[::2], said[1::2], strict=True))

    def slip(group: dict[str, Any], key: str) -> dict[str, Any]:
        name = group["name"]
        return {
            "name": pick(NAMES, key, name) if share(key, name, 1) < 0.3 else name,
            "count": 3 - group["count"] if share(key, name, 2) < 0.3 else group["count"],
            "color": pick(COLORS, key, name, 3),
        }

    def likelihoods(
        places: Sequence[int], prompts: Sequence[str], answers: Sequence[str]
    ) -> list[npt.NDArray[np.float64]]:
        found = []
        for place, text in zip(places, answers, strict=True):
            seen = set((table[place]["caption"] or "").split()) if kind != "blind" else set()
            found.append(np.array([np.log(0.6 if w in seen else 0.1) for w in text.split()]))
        return found

    def uses(
        places: Sequence[int], prompts: Sequence[str], answers: Sequence[str]
    ) -> list[npt.NDArray[np.float64]]:
        return [np.linspace(0.9, 0.1, len(text.split())) for text in answers]

    return Captioner(
        rows=rows,
        generate=generate,
        token_log_likelihoods=likelihoods,
        tokens=lambda text: [m.span() for m in re.finditer(r"\S+", text)],
        use_of_image=uses if use else None,
        use_kind=use,
        facts={"parameters": 1000.0, "image_tokens": 4.0},
    )
