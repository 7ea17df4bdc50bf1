"""instructions: every answer is checked against the labels by readers of their own."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.identity import row_uid
from winnow.contracts.media import MediaCaps
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.stage import WorkerOptions
from winnow.pipeline.fingerprint import stage_fingerprint
from winnow.stages._conversations import Absent, Dice, Thing, background_words, phrase, plural
from winnow.stages._written_turns import WRITTEN_PROMPT
from winnow.stages._written_turns import turns_of as written_turns
from winnow.stages.caption import Caption
from winnow.stages.instructions import Instructions
from winnow.stages.sources._scenes.sprites import CONCEPT
from winnow.stages.sources.scenes import SceneSource

LABELS = {
    "objects": None, "groups": "truth_groups", "relations": "truth_relations",
    "background": "truth_background", "vocabulary": "scenes",
}  # fmt: skip
NUMBERS = {"a": 1, "an": 1, "no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
SINGULAR = {c.plural: c.name for c in CONCEPT.values()} | {name: name for name in CONCEPT}
LONGEST_FIRST = "|".join(re.escape(n) for n in sorted(SINGULAR, key=len, reverse=True))
ASKED = re.compile(rf"\ban? ({LONGEST_FIRST})(?: in the picture)?\?")
COUNTED = re.compile(
    rf"\b({'|'.join(NUMBERS)}) (?:(red|orange|yellow|green|blue|purple|pink|black|white) )?"
    rf"({LONGEST_FIRST})(?![\w-])"
)
OPPOSITE = {"to the left of": "to the right of", "above": "below"}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}


@pytest.fixture(scope="module")
def scenes() -> pa.RecordBatch:
    source = SceneSource(
        num_rows=80, noise={}, captions="paragraph", objects=(3, 7), num_concepts=100
    )
    return next(iter(source.read(source.files()[0])))


def made(batch: pa.RecordBatch, **parameters: Any) -> list[dict[str, Any]]:
    stage = Instructions(**validate(Instructions, parameters))
    out = stage.annotate(batch, stage.setup(WorkerOptions()), None)  # type: ignore[arg-type]
    assert out.schema.equals(stage.writes)
    return out.to_pylist()


def test_a_group_of_none_is_not_there(scenes: pa.RecordBatch) -> None:
    groups = [
        [{"name": "dog", "count": 0, "color": None}, {"name": "cat", "count": None, "color": None}]
    ]
    place = scenes.schema.get_field_index("truth_groups")
    column = pa.array(groups, scenes.schema.field(place).type)
    batch = scenes.slice(0, 1).set_column(place, scenes.schema.field(place), column)
    labels = LABELS | {"relations": None, "background": None, "vocabulary": None}
    for row in made(batch, **labels, kinds=["detail", "conversation"], kinds_per_row=2):
        said = " ".join(answer for _, answer in turns_of(row))
        assert "cat" in said and "dog" not in said


def turns_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Questions and answers; checks LLaVA's form on the way."""
    turns = row["conversations"]
    assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2)
    assert turns[0]["value"].startswith("<image>\n")
    assert sum(t["value"].count("<image>") for t in turns) == 1
    values = [t["value"].removeprefix("<image>\n") for t in turns]
    assert all(v == v.strip() and v for v in values)
    return list(zip(values[::2], values[1::2], strict=True))


def counted(text: str) -> dict[str, tuple[int, str | None]]:
    """Read "two red cars, a dog and an owl" back: name -> count and colour."""
    found = COUNTED.findall(text)
    return {SINGULAR[name]: (NUMBERS[number], color or None) for number, color, name in found}


def truth(row: dict[str, Any]) -> dict[str, tuple[int, str | None]]:
    return {g["name"]: (g["count"], g["color"]) for g in row["truth_groups"]}


def check_relations(text: str, row: dict[str, Any]) -> int:
    """Check every "the A is above the B"; return how many there are."""
    known = {(r["subject"], r["predicate"], r["object"]) for r in row["truth_relations"]}
    words = {"to the left of": "left of", "above": "above", "on top of": "on"}
    pattern = r"[Tt]he ([\w' -]+?) (?:is|are) (to the left of|above|on top of) the ([\w' -]+?)[.,]"
    found = re.findall(pattern, text)
    for subject, predicate, thing in found:
        assert (SINGULAR[subject], words[predicate], SINGULAR[thing]) in known, text
    return len(found)


def test_the_truth_of_every_conversation(scenes: pa.RecordBatch) -> None:
    answers: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for row, out in zip(
        scenes.to_pylist(), made(scenes, kinds=["conversation"], num_turns=6, **LABELS), strict=True
    ):
        there = truth(row)
        for question, answer in turns_of(out):
            seen[question.split()[0]] += 1
            if answer.startswith(("Yes", "No")):
                (name,) = ASKED.findall(question)
                assert (name in there) == answer.startswith("Yes"), (question, answer)
                answers[answer[:2]] += 1
            if answer.startswith(("There", "I can see")) and not question.startswith(
                ("How", "Cou")
            ):
                assert counted(answer) == there
            if question.startswith(("How many", "Count")):
                ((name, (count, _)),) = counted(answer).items()
                assert count == there[name][0]
            color = re.fullmatch(r"The (.+) (?:is|are) (\w+)\.", answer)
            if question.startswith("What color") and color:
                assert there[SINGULAR[color[1]]][1] == color[2]
            check_relations(answer, row)
    assert answers["Ye"] == answers["No"] > 50  # balanced, exactly
    assert len(seen) >= 8


def test_the_truth_of_every_detail(scenes: pa.RecordBatch) -> None:
    prompts, relations = set(), 0
    for row, out in zip(scenes.to_pylist(), made(scenes, kinds=["detail"], **LABELS), strict=True):
        ((prompt, answer),) = turns_of(out)
        assert counted(answer) == truth(row)
        relations += check_relations(answer, row)
        assert background_words(row["truth_background"]) in answer
        prompts.add(prompt)
    assert relations > 50
    assert len(prompts) == 4


def test_the_truth_of_every_reasoning(scenes: pa.RecordBatch) -> None:
    verdicts: Counter[str] = Counter()
    for row, out in zip(
        scenes.to_pylist(), made(scenes, kinds=["reasoning"], **LABELS), strict=True
    ):
        if out["conversations_error"]:
            continue
        ((question, answer),) = turns_of(out)
        there = truth(row)
        check_relations(answer, row)
        if "in all" in question or "all the things" in question:
            assert answer.endswith(f"= {sum(count for count, _ in there.values())} things.")
            verdicts["sum"] += 1
        elif question.startswith("Are there more"):
            one, two = (SINGULAR[n] for n in re.findall(r"more (.+) than (.+)\?", question)[0])
            more = there[one][0] - there[two][0]
            assert ("yes" in answer) == (more > 0)
            assert ("as many" in answer) == (more == 0)
            verdicts["more"] += 1
        elif question.startswith("If one"):
            name = re.findall(r"If one (.+) went", question)[0]
            left = re.findall(r"them, (\w+) ", answer)[0]
            assert NUMBERS[left] == there[name][0] - 1
            verdicts["less"] += 1
        else:
            pattern = r"(?:Is|Are) the (.+?) (to the \w+ of|above|below) the (.+?)\?"
            a, words, b = re.findall(pattern, question)[0]
            said = {(r["subject"], r["predicate"], r["object"]) for r in row["truth_relations"]}
            said = {(x, p.replace("left of", "to the left of"), y) for x, p, y in said}
            said |= {(y, OPPOSITE[p], x) for x, p, y in said if p in OPPOSITE}
            assert ((SINGULAR[a], words, SINGULAR[b]) in said) == answer.startswith("Yes:")
            verdicts[answer[:3]] += 1
    assert set(verdicts) == {"sum", "more", "less", "Yes", "No:"}


def test_several_kinds_make_one_conversation(scenes: pa.RecordBatch) -> None:
    rows = made(scenes, kinds_per_row=3, **LABELS)
    kinds = Counter(tuple(row["conversations_kinds"]) for row in rows)
    assert len(kinds) == 6
    assert all(len(turns_of(row)) >= 4 for row in rows if len(row["conversations_kinds"]) == 3)
    single = made(scenes, **LABELS)
    assert {len(row["conversations_kinds"]) for row in single} == {1}
    assert len({row["conversations_kinds"][0] for row in single}) == 3


def test_draws_follow_the_seed_and_the_uid_alone(scenes: pa.RecordBatch) -> None:
    rows = made(scenes, **LABELS)
    assert made(scenes.slice(40, 3), **LABELS) == rows[40:43]
    assert made(scenes, seed=1, **LABELS) != rows


def plain(**columns: list[Any]) -> pa.RecordBatch:
    length = len(next(iter(columns.values())))
    arrays: dict[str, Any] = {"uid": pa.array([row_uid(i) for i in range(length)], pa.binary(16))}
    kinds = {"text": pa.string(), "truth_objects": pa.list_(pa.string())}
    arrays |= {name: pa.array(values, kinds[name]) for name, values in columns.items()}
    return pa.RecordBatch.from_pydict(arrays)


def test_rows_without_facts_and_rows_with_a_caption_only() -> None:
    batch = plain(
        text=["a cat on a mat", None, " ", "a dog"], truth_objects=[None, None, None, [None, ""]]
    )
    rows = made(batch)
    assert [r["conversations_error"] for r in rows] == [None, "no_facts", "no_facts", "no_facts"]
    assert rows[0]["conversations_kinds"] == ["detail"]
    ((_, answer),) = turns_of(rows[0])
    assert answer == "a cat on a mat"
    alone = made(plain(text=["a cat"]), kinds=["detail"], objects=None)
    assert turns_of(alone[0])[0][1] == "a cat"


def test_a_conversation_that_a_model_wrote_goes_first() -> None:
    good = "Sure!\n\n**Q1:** What is it?\n**A1:** A <image> cat,\nasleep.\n\nQ2: Where?\nA2: On it."
    lists = [[None, "no form", good], ["Q: What?\nA:"], None]
    batch = plain(text=["a", "b", None]).append_column(
        "written", pa.array(lists, pa.list_(pa.string()))
    )
    rows = made(batch, objects=None, written="written")
    assert turns_of(rows[0]) == [("What is it?", "A  cat,\nasleep."), ("Where?", "On it.")]
    assert [row["conversations_kinds"] for row in rows] == [["written"], ["detail"], None]
    server = Caption(
        engine="endpoint", model="m", url="http://127.0.0.1:1/v1", prompt=WRITTEN_PROMPT,
        column="written",
    )  # fmt: skip
    stage = Instructions(objects=None, caption=None, written="written")
    assert server.writes.field("written").type == stage.reads.field("written").type


def test_written_kinds_are_told_apart_and_go_first(scenes: pa.RecordBatch) -> None:
    """Of every row the kinds that a model wrote, then templates' kinds, none twice."""
    length = scenes.num_rows
    held = {
        "detail": [i % 2 == 0 for i in range(length)],
        "reasoning": [i % 3 == 0 for i in range(length)],
    }
    batch = scenes
    for kind, there in held.items():
        said = [["no form", f"Q: {kind} {i}?\nA: {kind}."] for i in range(length)]
        texts = [said[i] if there[i] else ["no form"] for i in range(length)]
        batch = batch.append_column(f"told_{kind}", pa.array(texts, pa.list_(pa.string())))
    written = {kind: f"told_{kind}" for kind in held}
    made_of_templates = made(scenes, kinds_per_row=3, **LABELS)
    for per_row in (1, 2, 3):
        rows = made(batch, kinds_per_row=per_row, written=written, **LABELS)
        firsts = set()
        for place, row in enumerate(rows):
            by_model = [f"written_{kind}" for kind in held if held[kind][place]]
            kinds = row["conversations_kinds"]
            assert set(kinds[: len(by_model)]) <= set(by_model)
            plain = [kind for kind in kinds if not kind.startswith("written_")]
            assert len({k.removeprefix("written_") for k in kinds}) == len(kinds) <= per_row
            assert kinds[len(kinds) - len(plain) :] == plain
            asked = [prompt for prompt, _ in turns_of(row)]
            expected = [f"{k.removeprefix('written_')} {place}?" for k in kinds[: len(by_model)]]
            assert asked[: len(expected)] == expected
            if not by_model and per_row == 3:
                assert row == made_of_templates[place]
            firsts.add(kinds[0])
        assert {"written_detail", "written_reasoning"} < firsts
    detail = made(batch, kinds=["detail"], written={"detail": "told_detail"}, **LABELS)
    templates = made(scenes, kinds=["detail"], **LABELS)
    assert detail[0]["conversations_kinds"] == ["written_detail"]
    assert detail[1] == templates[1]


def test_recipes_without_kinds_of_written_texts_keep_their_fingerprints() -> None:
    """The digests from before ``written`` could name a column for each kind."""
    golden = [
        ({}, "58d6c5c17f2286306f7394e84886cbf7"),
        ({"written": "told", "objects": None}, "10f2a1e1267be46c8fa0a9a9cb713e5a"),
    ]
    for values, digest in golden:
        stage = Instructions(**validate(Instructions, values))
        assert stage_fingerprint(stage, ["source"], MediaCaps()) == digest
    asked = Instructions(**validate(Instructions, {"written": {"reasoning": "b", "detail": "a"}}))
    assert asked.reads.names == ["truth_objects", "text", "a", "b"]
    assert pickle.loads(pickle.dumps(asked)) == asked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Q: a?\nA: b.", [("a?", "b.")]),
        ("User: a?\nAssistant: b.\nUser: c?", [("a?", "b.")]),
        ("1. Q: a?", []),
        ("Q: a?\nQ: b?\nA: c.\nA: d.", []),
        ("A: b.\nQ: a?\nA: b.", [("a?", "b.")]),
        ("Q: a?\nA:   \nQ: b?\nA: c.", []),
        ("A cat: it sits. Q: no line", []),
        ("Q: Which way?\nA: Up.\nA person: no mark.", [("Which way?", "Up.\nA person: no mark.")]),
        ("", []),
    ],
)
def test_written_turns(text: str, expected: list[tuple[str, str]]) -> None:
    assert [(turn.prompt, turn.answer) for turn in written_turns(text)] == expected


def test_a_caption_with_the_pictures_token_loses_it() -> None:
    ((_, answer),) = turns_of(made(plain(text=["a <image> cat"]), objects=None)[0])
    assert answer == "a  cat"


def test_without_a_vocabulary_nothing_is_asked_with_yes_or_no(scenes: pa.RecordBatch) -> None:
    labels = LABELS | {"vocabulary": None}
    rows = made(scenes, kinds=["conversation"], num_turns=6, **labels)
    assert not [a for row in rows for _, a in turns_of(row) if a.startswith(("Yes", "No"))]


def test_absent_objects_come_by_their_frequency(tmp_path: Path) -> None:
    path = tmp_path / "objects.json"
    document = {"num_rows": 9, "objects": {"cat": 6, "dog": 3, "owl": 100, "cow": 0}, "pairs": {}}
    path.write_text(json.dumps(document))
    stage = Instructions(vocabulary=str(path))
    absent = stage.setup(WorkerOptions())
    assert absent is not None
    drawn = Counter(absent.pick(["owl"], Dice("test", i)) for i in range(3000))
    assert 1850 < drawn["cat"] < 2150
    assert drawn["dog"] == 3000 - drawn["cat"]
    assert Absent({"cat": 1}).pick(["Cat"], Dice("test")) is None
    before = stage.model_digest()
    path.write_text(json.dumps(document | {"num_rows": 10}))
    assert stage.model_digest() != before
    assert "vocabulary" not in result_parameters(stage)
    path.write_text("[]")
    with pytest.raises(SetupError, match="instructions: statistics"):
        stage.setup(WorkerOptions())


def test_plurals_are_those_of_every_packaged_name() -> None:
    assert [(c.name, plural(c.name)) for c in CONCEPT.values() if plural(c.name) != c.plural] == []
    assert phrase(Thing(name="hour glass")) == "an hour glass"
    assert phrase(Thing(name="unicorn", count=13, color="red")) == "13 red unicorns"
    assert background_words("stripes:blue") == "striped in blue"
    assert background_words("a beach: sunny") == "a beach: sunny"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kinds": []}, "name some, each once"),
        ({"kinds": ["detail", "detail"]}, "each once"),
        ({"kinds_per_row": 4}, "use 1 to 3"),
        ({"num_turns": 0}, "num_turns=0"),
        ({"groups": "truth_groups"}, "set one to null"),
        ({"objects": None, "kinds": ["reasoning"]}, r"only kinds: \[detail\]"),
        ({"objects": None, "caption": None, "kinds": ["detail"]}, r"only kinds: \[detail\]"),
        ({"column": "text"}, "have to be different names"),
        ({"background": "text"}, "have to be different names"),
        ({"written": {}}, r"written has \[\]; give a column, or one for each"),
        (
            {"written": {"detail": "a"}, "kinds": ["reasoning"]},
            r"written has \['detail'\]; .* only for those of kinds=\['reasoning'\]",
        ),
        ({"written": {"detail": "a", "reasoning": "a"}}, "have to be different names"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Instructions(**validate(Instructions, values))
