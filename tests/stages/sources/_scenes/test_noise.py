"""Rows: shares, copies, and captions that are wrong in exactly the way that is said."""

from __future__ import annotations

from collections import Counter

import pytest

from winnow.contracts.errors import RecipeError
from winnow.stages.sources._scenes import caption, num_variants
from winnow.stages.sources._scenes.noise import BOILERPLATE, COPIES, SHARES, Row, World
from winnow.stages.sources.scenes import SceneSource

WORLD = SceneSource().world()
ROWS = [WORLD.row(i) for i in range(3000)]


def world_of(**noise: float) -> World:
    return SceneSource(noise=noise).world()


def rows_of(kind: str) -> list[Row]:
    found = [row for row in ROWS if row.kind == kind]
    assert len(found) >= 5, kind
    return found


def true_captions(row: Row) -> set[str]:
    drawn = WORLD.scene(row)
    return {caption(drawn, variant=v) for v in range(num_variants())}


def test_shares_are_those_asked_for() -> None:
    assert sum(SHARES.values()) == pytest.approx(0.5, abs=0.05)
    counts = Counter(row.kind for row in ROWS)
    assert set(counts) == {"clean", *SHARES}
    for kind, share in SHARES.items():
        spread = 4 * (share * (1 - share) / len(ROWS)) ** 0.5
        assert counts[kind] / len(ROWS) == pytest.approx(share, abs=spread), kind


def test_noise_replaces_the_defaults() -> None:
    assert {world_of().row(i).kind for i in range(200)} == {"clean"}
    kinds = Counter(world_of(tiny=0.5, corrupt=0.5).row(i).kind for i in range(200))
    assert set(kinds) == {"tiny", "corrupt"}


def test_clean_rows_say_what_is_there() -> None:
    for row in rows_of("clean")[:200]:
        assert row.text == row.truth
        assert row.text in true_captions(row)
        assert len(row.text.split()) >= 3
        assert row.language == "en"
        assert row.scene_index == row.index


def test_copies_point_to_earlier_clean_rows() -> None:
    by_index = {row.index: row for row in ROWS}
    reworded = Counter()
    for kind in COPIES:
        for row in rows_of(kind):
            assert row.original is not None
            original = by_index[row.original]
            assert original.index < row.index
            assert original.kind == "clean"
            assert row.scene_index == original.scene_index
            assert row.truth == original.truth
            assert (WORLD.uid(row) == WORLD.uid(original)) == (kind == "repeated_row")
            assert row.text in true_captions(original)
            reworded[kind] += row.text != original.text
    assert reworded["repeated_row"] == 0
    assert reworded["exact_duplicate"] > 5
    assert reworded["near_duplicate"] > 5
    assert all(row.original is None for row in ROWS if row.kind not in COPIES)


def test_only_repeated_rows_share_a_uid() -> None:
    seen: set[bytes] = set()
    for row in ROWS:
        assert (WORLD.uid(row) in seen) == (row.kind == "repeated_row")
        seen.add(WORLD.uid(row))


def test_the_first_row_has_nothing_to_copy() -> None:
    world = world_of(exact_duplicate=0.9)
    assert world.row(0).kind == "clean"
    assert world.row(0).original is None


def test_swapped_captions_are_of_another_scene() -> None:
    for row in rows_of("swapped_caption"):
        here = {thing.concept for thing in WORLD.scene(row).objects}
        assert row.truth in true_captions(row)
        assert row.text not in true_captions(row)
        assert not any(f" {name}" in f" {row.text} " for name in here if len(name) > 4)


def test_foreign_captions_are_true_in_another_language() -> None:
    languages = Counter()
    for row in rows_of("foreign_caption"):
        drawn = WORLD.scene(row)
        assert row.text in {caption(drawn, row.language, v) for v in (0, 1)}
        assert row.text not in true_captions(row)
        assert row.truth in true_captions(row)
        languages[row.language] += 1
    assert len(languages) >= 12
    assert "en" not in languages


def test_boilerplate_is_shared_and_file_names_look_like_it() -> None:
    shared = Counter(row.text for row in rows_of("boilerplate_caption"))
    assert set(shared) <= set(BOILERPLATE)
    assert shared.most_common(1)[0][1] > 5
    for row in rows_of("file_name_caption"):
        assert " " not in row.text
        assert row.text.rpartition(".")[2].lower() in ("jpg", "jpeg", "png")


def test_extreme_aspect_and_others_have_their_own_canvas() -> None:
    both = set()
    for row in rows_of("extreme_aspect"):
        drawn = WORLD.scene(row)
        ratio = drawn.width / drawn.height
        assert max(ratio, 1 / ratio) >= 3.5
        assert min(drawn.width, drawn.height) >= 200
        both.add(ratio > 1)
    assert both == {True, False}
    for row in rows_of("clean")[:100]:
        drawn = WORLD.scene(row)
        assert max(drawn.width / drawn.height, drawn.height / drawn.width) < 2
        assert min(drawn.width, drawn.height) >= 256


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({"dead_links": 0.1}, "no noise 'dead_links'; use some of .*dead_link"),
        ({"tiny": 1.5}, "tiny=1.5 is not a share"),
        ({"tiny": -0.1}, "tiny=-0.1 is not a share"),
        ({"tiny": 0.6, "html": 0.6}, "add up to 1.2"),
        ({"near_duplicate": 1.0}, "nothing to copy"),
    ],
)
def test_bad_shares_say_what_is_allowed(noise: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SceneSource(noise=noise)
