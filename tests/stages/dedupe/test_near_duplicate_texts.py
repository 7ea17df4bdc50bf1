"""The whole stage against its definition in plain Python, on any sharding; and what it refuses."""

from __future__ import annotations

import itertools
import math
import random
import unicodedata
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.parameters import result_parameters
from winnow.stages.dedupe import _minhash
from winnow.stages.dedupe._minhash import Bands, Hasher, Scheme, choose_bands, normalise
from winnow.stages.dedupe.near_duplicate_texts import NearDuplicateTexts

SCHEMA = pa.schema({"uid": pa.binary(16), "text": pa.string()})
NAMES = ("near_duplicate_texts", "near_duplicate_texts_jaccard", "near_duplicate_texts_group")


def uid(number: int) -> bytes:
    # High bytes too: the order of uids is that of unsigned bytes.
    return (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + number.to_bytes(8, "big")


def table(rows: list[tuple[bytes, str | None]]) -> pa.Table:
    return pa.table([[r[0] for r in rows], [r[1] for r in rows]], schema=SCHEMA)


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and marks; one per Han character."""
    out = [""]
    for c in unicodedata.normalize("NFKC", text).casefold():
        if "\u4e00" <= c <= "\u9fff":
            out += [c, ""]
        elif unicodedata.category(c)[0] in "LNM":
            out[-1] += c
        else:
            out.append("")
    return [word for word in out if word]


def runs(text: str, n: int) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def naive(
    stage: NearDuplicateTexts, rows: list[tuple[bytes, str | None]]
) -> tuple[list[Any], list[Any]]:
    """Lists of (uid, similarity) and groups by the words of the docstring, pair by pair."""
    first: dict[bytes, str] = {}
    for name, text in rows:
        if text is not None and words_of(text):
            first.setdefault(name, text)
    by_words: dict[tuple[str, ...], list[bytes]] = {}
    for name in sorted(first):
        by_words.setdefault(tuple(words_of(first[name])), []).append(name)
    near: dict[bytes, set[tuple[bytes, float]]] = {name: set() for name in first}
    for group in by_words.values():
        for name in group[1:]:
            near[group[0]].add((name, 1.0))
            near[name].add((group[0], 1.0))
    for one, two in itertools.combinations(by_words.values(), 2):
        a, b = runs(first[one[0]], stage.ngram), runs(first[two[0]], stage.ngram)
        similar = float(np.float32(len(a & b) / len(a | b)))
        if similar >= np.float32(stage.threshold):
            for name, other in itertools.product(one, two):
                near[name].add((two[0], similar))
                near[other].add((one[0], similar))
    lists, groups = [], []
    for name, text in rows:
        known = text is not None and bool(words_of(text))
        lists.append(sorted(near[name]) if known else None)
        mine = by_words[tuple(words_of(first[name]))] if known else []
        groups.append(mine[0] if len(mine) > 1 else None)
    return lists, groups


def found(tables: list[pa.Table]) -> tuple[list[Any], list[Any]]:
    lists, groups = [], []
    for row in pa.concat_tables(tables).to_pylist():
        names, similar = row[NAMES[0]], row[NAMES[1]]
        assert (names is None) == (similar is None)
        lists.append(None if names is None else list(zip(names, similar, strict=True)))
        groups.append(row[NAMES[2]])
    return lists, groups


def rounded(lists: list[Any]) -> list[Any]:
    return [x if x is None else [(name, round(s, 6)) for name, s in x] for x in lists]


def edited(words: list[str], share: float, rng: random.Random) -> list[str]:
    return [f"new{rng.randrange(10**6)}" if rng.random() < share else word for word in words]


@st.composite
def pools(draw: st.DrawFn) -> list[tuple[bytes, str | None]]:
    """Texts around a few originals, in ASCII and not, short ones, nulls, repeats."""
    rng = random.Random(draw(st.integers(0, 10**6)))
    alphabet = [f"w{i}" for i in range(200)]
    if draw(st.booleans()):
        alphabet += ["na\u00efve", "STRASSE", "stra\u00dfe", "\u0939\u093f\u0928\u094d\u0926\u0940"]
        alphabet += ["\u732b", "\u4e00\u53ea", "\ufb01ne", "e\u0301t\u00e9"]
    originals = [[rng.choice(alphabet) for _ in range(rng.choice([3, 6, 60]))] for _ in range(4)]
    rows: list[tuple[bytes, str | None]] = []
    for number in range(draw(st.integers(0, 24))):
        words = edited(rng.choice(originals), rng.choice([0, 0, 0.02, 0.05, 0.3]), rng)
        text: str | None = rng.choice([" ", "\n", ", ", " \u2014 "]).join(words)
        chance = rng.random()
        if chance < 0.2:
            text = rng.choice([None, "", "?!", text.upper(), f"({text})"]) if text else None
        rows.append((uid(number if chance < 0.9 else number // 2), text))
    return rows


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=pools(), cuts=st.lists(st.integers(0, 24), max_size=3), ngram=st.sampled_from([1, 3, 5])
)
def test_equals_the_definition_for_any_sharding(
    run_global: Any, rows: list[tuple[bytes, str | None]], cuts: list[int], ngram: int
) -> None:
    """With 512 permutations a pair is missed once in 10**7."""
    first: dict[bytes, str] = {}
    rows = [(n, t if t is None else first.setdefault(n, t)) for n, t in rows]
    stage = NearDuplicateTexts(ngram=ngram, num_permutations=512, threshold=0.6)
    bounds = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
    shards = [table(rows[a:b]) for a, b in itertools.pairwise(bounds)]
    tables, counters = run_global(stage, shards)
    lists, groups = naive(stage, rows)
    mine = found(tables)
    assert rounded(mine[0]) == rounded(lists)
    assert mine[1] == groups
    assert counters["rows"] == len(rows)
    assert counters["rows_without_words"] == sum(x is None for x in lists)


def test_recall_at_the_threshold_is_what_the_bands_promise(run_global: Any) -> None:
    """400 pairs with a Jaccard similarity just above 0.7; 0.995 is promised, and more expected."""
    rng = random.Random(0)
    rows: list[tuple[bytes, str | None]] = []
    for pair in range(400):
        words = [f"p{pair}w{i}" for i in range(104)]
        other = list(words)
        for place in (15, 40, 80):  # each spoils five of 100 runs: 85 / 115 = 0.739
            other[place] = f"x{rng.randrange(10**9)}"
        other[2] = "y"  # three runs more: 82 / 118 = 0.695
        other[3] = words[3]
        near = other if pair % 2 else [*other[:2], words[2], *other[3:]]
        rows += [(uid(2 * pair), " ".join(words)), (uid(2 * pair + 1), " ".join(near))]
    tables, counters = run_global(NearDuplicateTexts(num_threads=1), [table(rows)])
    lists = found(tables)[0]
    listed = [bool(lists[i]) for i in range(0, 800, 2)]
    assert not any(listed[1::2]), "0.695 is not 0.7"
    assert sum(listed[::2]) >= 199
    assert counters["pairs"] == sum(listed)


@pytest.mark.parametrize(
    ("threshold", "permutations", "bands", "rows"), [(0.7, 128, 32, 4), (0.9, 128, 14, 9)]
)
def test_bands(threshold: float, permutations: int, bands: int, rows: int) -> None:
    assert choose_bands(threshold, permutations, 0.995) == (bands, rows)
    assert 1 - (1 - threshold**rows) ** bands >= 0.995
    more = permutations // (rows + 1)
    assert 1 - (1 - threshold ** (rows + 1)) ** more < 0.995


def test_least_matches_is_a_binomial_quantile() -> None:
    least = _minhash.least_matches(0.75, 128, 1e-6)
    ways = [math.comb(128, m) * 3**m for m in range(129)]  # exact: of 4**128
    assert sum(ways[:least]) * 10**6 <= 4**128 < sum(ways[: least + 1]) * 10**6


def test_signatures_estimate_jaccard_without_bias() -> None:
    """1,000 pairs at J = 1/2: the mean share of equal values, and its variance, are binomial."""
    scheme = Scheme(ngram=1, bands=32, rows=4)
    texts = []
    for pair in range(1000):
        words = [f"{pair}a{i}" for i in range(60)]
        texts += [" ".join(words[:45]).encode(), " ".join(words[15:]).encode()]
    signatures = Hasher(scheme).hash(texts).signatures
    shares = (signatures[::2] == signatures[1::2]).mean(axis=1)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.006)  # 4 standard errors
    assert np.var(shares) == pytest.approx(0.25 / 128, rel=0.2)


def test_pairs_of_bands_come_once_and_are_counted() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**32, (5, 32), np.uint64).astype(np.uint32)
    signatures = base[rng.integers(0, 5, 40)]
    noise = rng.random((40, 32)) < 0.2
    signatures[noise] = rng.integers(0, 2**32, int(noise.sum()), np.uint64).astype(np.uint32)
    bands = Bands(signatures, np.arange(40), Scheme(ngram=5, bands=8, rows=4), 10)
    got = [pair for a, b in bands.pairs() for pair in zip(a.tolist(), b.tolist(), strict=True)]
    expected, comparisons = set(), 0
    for a, b in itertools.combinations(range(40), 2):
        same = signatures[a] == signatures[b]
        agree = same.reshape(8, 4).all(axis=1)
        comparisons += int(agree.sum())
        if agree.any() and same.sum() >= 10:
            expected.add((a, b))
    assert len(got) == len(set(got))
    assert set(got) == expected
    assert bands.count_comparisons() == comparisons


def test_similar_sets_equal_pythons_sets() -> None:
    """Hashes that share their low bits too, so that the cheap bound lets some through."""
    rng = random.Random(0)
    pool = [rng.randrange(40) + (rng.randrange(3) << 40) for _ in range(60)]
    sets = [sorted(set(rng.choices(pool, k=rng.randint(1, 30)))) for _ in range(150)]
    sizes = np.array([len(s) for s in sets])
    shingles = np.array([x for s in sets for x in s], np.uint64)
    made = _minhash.Sets(shingles=shingles, starts=np.cumsum(sizes) - sizes, sizes=sizes)
    left, right = map(np.array, zip(*itertools.combinations(range(150), 2), strict=True))
    near, similar = made.similar(left, right, 0.2)
    exact = [
        len({*sets[a]} & {*sets[b]}) / len({*sets[a], *sets[b]})
        for a, b in zip(left, right, strict=True)
    ]
    assert near.tolist() == [i for i, value in enumerate(exact) if value >= 0.2]
    assert similar.tolist() == pytest.approx([exact[i] for i in near], abs=1e-6)


def test_values_are_the_same_on_every_machine() -> None:
    hashed = Hasher(Scheme(ngram=2, bands=2, rows=2)).hash([b"One two, three", b"", b"two three"])
    assert hashed.sizes.tolist() == [2, 0, 1]
    assert hashed.shingles.tolist()[:2] == [255093580764735, 275434535470182]
    assert hashed.signatures[0].tolist() == [850958306, 445818536, 103309419, 573111299]
    assert hashed.shingles[2] in hashed.shingles[:2]


def test_a_text_hashes_the_same_alone_and_in_company() -> None:
    hasher = Hasher(Scheme(ngram=3, bands=4, rows=4))
    texts = [b"a b c d e f", b"", b" ", b"x", b"Q q-q.q", "h\u00e9 \u4e00 t".encode(), b"a b c d"]
    together = hasher.hash(texts)
    for row, text in enumerate(texts):
        alone = hasher.hash([text])
        assert alone.signatures[0].tolist() == together.signatures[row].tolist()
        assert alone.digests[0].tolist() == together.digests[row].tolist()


def test_long_texts_are_hashed_in_pieces() -> None:
    """The same words, in one text of 3 MB, in two halves, and by a plain sum of products."""
    words = [f"{'long' * (i % 7)}{i}" for i in range(150_000)]
    text = " ".join(words).encode()
    assert len(text) > 2 << 20
    hasher = Hasher(Scheme(ngram=1, bands=1, rows=4))
    whole = hasher.hash([text])
    parts = hasher.hash([" ".join(w).encode() for w in (words[:70_000], words[70_000:])])
    assert whole.sizes.tolist() == [150_000]
    assert sorted(whole.shingles.tolist()) == sorted(parts.shingles.tolist())
    total = 0
    for place, byte in enumerate(b"longlong2"):
        total += int(_minhash._BYTES[byte]) * pow(_minhash._BASE, place, 2**64)
    word = _minhash.mix(np.array([total % 2**64], np.uint64))
    shingle = _minhash.mix(word * hasher._weights[0])[0] >> np.uint64(16)
    assert int(shingle) in set(whole.shingles.tolist())


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Stra\u00dfe, 5", "STRASSE 5"),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff21\uff22", "ab"),
        ("a\u00a0b", "a b"),
        ("a\u2014b", "a b"),
        ("\u202eabc\u202c", "abc"),
        ("a\x00b", "a b"),
    ],
)
def test_what_counts_as_equal(one: str, two: str) -> None:
    hashed = Hasher(Scheme(ngram=2, bands=2, rows=2)).hash([normalise(one), normalise(two)])
    assert hashed.digests[0].tolist() == hashed.digests[1].tolist()
    assert hashed.sizes.tolist() == [1, 1]


def test_marks_do_not_cut_words_and_scripts_without_spaces_are_cut() -> None:
    scheme = Scheme(ngram=1, bands=2, rows=2)
    texts = ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u4e00\u53ea\u732b", "\u0e01\u0e34\u0e19"]
    assert Hasher(scheme).hash([normalise(t) for t in texts]).sizes.tolist() == [1, 3, 2]


def test_hostile_texts_cost_only_themselves(run_global: Any) -> None:
    texts = [
        "x" * 10_000_000,  # one word longer than any piece
        "a " * 2_000_000,
        "\x00" * 1000,
        "\ufffd\ufffd half a pair",
        "\U0001f408" * 5000,
        "\u202e\u0645\u0631\u062d\u0628\u0627 \u0628\u0643",
        "",
        None,
        "a b c",
        "A, b; c!",
    ]
    rows = [(uid(i), text) for i, text in enumerate(texts)]
    tables, counters = run_global(NearDuplicateTexts(), [table(rows)])
    lists = found(tables)[0]
    assert [x is None for x in lists] == [
        t in (None, "") or i in (2, 4) for i, t in enumerate(texts)
    ]
    assert lists[8] == [(uid(9), 1.0)]
    assert lists[9] == [(uid(8), 1.0)]
    assert counters["pairs"] == 0


def test_refuses_before_it_writes(run_global: Any) -> None:
    shared = " ".join(f"w{i}" for i in range(200))
    rows: list[tuple[bytes, str | None]] = [(uid(i), f"{shared} end{i}") for i in range(50)]
    with pytest.raises(SetupError, match="50 distinct texts need .* comparisons"):
        run_global(NearDuplicateTexts(max_comparisons=1000), [table(rows)])
    with pytest.raises(SetupError, match=r"at least 1,225 neighbours.*raise threshold \(now 0.7\)"):
        run_global(NearDuplicateTexts(max_pairs=1000), [table(rows)])
    copies: list[tuple[bytes, str | None]] = [(uid(i), shared) for i in range(50)]
    tables, counters = run_global(NearDuplicateTexts(max_pairs=1000), [table(copies)])
    assert counters["comparisons"] == 0
    assert sorted(len(x) for x in found(tables)[0]) == [*[1] * 49, 49]


def test_no_rows(run_global: Any) -> None:
    tables, counters = run_global(NearDuplicateTexts(), [table([]), table([(uid(1), None)])])
    assert [t.num_rows for t in tables] == [0, 1]
    assert counters["texts"] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"column": ""}, "name of a string column"),
        ({"ngram": 0}, "ngram=0 .* 1 to 100"),
        ({"threshold": 70.0}, "threshold=70.0 .* 0.1 to 1"),
        ({"num_permutations": 8}, "16 to 1024"),
        ({"num_threads": 0}, "at least 1"),
    ],
)
def test_refuses_what_cannot_be_meant(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        NearDuplicateTexts(**values)


def test_effort_is_outside_the_fingerprint() -> None:
    names = set(result_parameters(NearDuplicateTexts()))
    assert names == {"column", "ngram", "threshold", "num_permutations"}
