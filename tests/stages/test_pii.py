"""pii: a hand-made list of true and false cases, offsets, redaction, hostile text."""

from __future__ import annotations

import itertools
import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.stages._pii_rules import KINDS, Span, find_spans, is_card_number, is_iban, luhn, redact
from winnow.stages.pii import COUNTS, PLACEHOLDERS, Pii

TRUE: list[tuple[str, str]] = [
    ("email", "jane.doe@example.com"),
    ("email", "j_d+tag@mail.example.co.uk"),
    ("email", "o'brien@example.ie"),
    ("email", "info@xn--bcher-kva.example"),
    ("email", "A1@B2.org"),
    ("phone", "+49 30 901820"),
    ("phone", "+44 20 7946 0958"),
    ("phone", "+44 (0)20 7946 0958"),
    ("phone", "+1-415-555-2671"),
    ("phone", "+14155552671"),
    ("phone", "+33 1 23 45 67 89"),
    ("phone", "+86 138 0013 8000"),
    ("phone", "+358401234567"),
    ("phone", "0049 30 901820"),
    ("phone", "(415) 555-2671"),
    ("phone", "415-555-2671"),
    ("phone", "415.555.2671"),
    ("phone", "1 415 555 2671"),
    ("phone", "030 90182000"),
    ("phone", "030/9018-2000"),
    ("phone", "(030) 9018 2000"),
    ("phone", "020 7946 0958"),
    ("phone", "01 23 45 67 89"),
    ("phone", "01.23.45.67.89"),
    ("ip_address", "8.8.8.8"),
    ("ip_address", "93.184.216.34"),
    ("ip_address", "2606:2800:220:1:248:1893:25c8:1946"),
    ("ip_address", "2a00:1450:4001:81b::200e"),
    ("card_number", "4111111111111111"),
    ("card_number", "4111 1111 1111 1111"),
    ("card_number", "5555-5555-5555-4444"),
    ("card_number", "378282246310005"),
    ("card_number", "3782 822463 10005"),
    ("card_number", "6011111111111117"),
    ("card_number", "3530111333300000"),
    ("card_number", "30569309025904"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB82WEST12345698765432"),
    ("iban", "FR14 2004 1010 0505 0001 3M02 606"),
    ("iban", "NO93 8601 1117 947"),
]
FALSE: list[str] = [
    "user@localhost",
    "@handle",
    "a@b",
    "x..y@example.com",
    "me @ example.com",
    "3.14159265358979",
    "2023-01-15",
    "01/02/2003 12:30",
    "15-01-2003",
    "12:30:45",
    "1,234,567,890",
    "1234567890",
    "0123456789",
    "ISBN 978-3-16-148410-0",
    "ISBN 0-306-40615-2",
    "123-456-7890",
    "+99912345678",
    "+1 123 456 7890",
    "+1234567",
    "1 + 234567",
    "order 0012345678",
    "192.168.0.1",
    "127.0.0.1",
    "10.0.0.12",
    "203.0.113.7",
    "256.1.1.1",
    "1.2.3.4.5",
    "version 8.8.8.8",
    "v8.8.8.8",
    "std::vector a::b",
    "fe80::1",
    "::1",
    "00:1A:2B:3C:4D:5E",
    "4111 1111 1111 1112",
    "4111-1111 1111-1111",
    "1234567812345670",
    "0000000000000000",
    "41111111111111111111111",
    "DE89 3704 0044 0532 0130 01",
    "ZZ89 3704 0044 0532 0130 00",
    "GPT4 and H2O and B52",
    "2001:2:3",
    "$1,000,000.00 in 1999-2005",
    "pages 100-200, 300-400",
    "555-1234",
]
AROUND = ["{}", "Call or write: {}.", "({})", "\u4e00 {}, ok", "<{}>", "\U0001f408 {}\n"]


@pytest.mark.parametrize("around", AROUND)
def test_recall_on_true_cases(around: str) -> None:
    missed = []
    for kind, text in TRUE:
        whole = around.format(text)
        first = around.index("{}")
        if find_spans(whole) != [Span(kind, first, first + len(text))]:
            missed.append((kind, whole, find_spans(whole)))
    assert missed == []


@pytest.mark.parametrize("around", AROUND)
def test_precision_on_false_cases(around: str) -> None:
    wrong = [(text, find_spans(around.format(text))) for text in FALSE]
    assert [x for x in wrong if x[1]] == []


def test_a_text_with_everything() -> None:
    rng = random.Random(1)
    parts, expected, place = [], [], 0
    for kind, text in rng.sample(TRUE, len(TRUE)):
        gap = rng.choice(["; then ", "\n\n", ", see \u4e00 ", " \u2014 "])
        parts += [text, gap]
        expected.append(Span(kind, place, place + len(text)))
        place += len(text) + len(gap)
    whole = "".join(parts)
    assert find_spans(whole) == expected
    clean = redact(whole, expected)
    assert find_spans(clean) == []
    assert sum(clean.count(p) for p in PLACEHOLDERS) == len(TRUE)


def test_a_megabyte_of_digits() -> None:
    assert find_spans("1" * 1_000_000) == []


def test_a_number_before_a_card_does_not_hide_it() -> None:
    assert find_spans("2023 4111 1111 1111 1111") == [Span("card_number", 5, 24)]


@given(st.text("0123456789", min_size=1, max_size=25))
def test_luhn_is_the_table_of_the_standard(digits: str) -> None:
    doubled = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    values = [int(d) for d in digits[::-1]]
    total = sum(doubled[v] if i % 2 else v for i, v in enumerate(values))
    assert luhn(digits) == (total % 10 == 0)


def test_one_wrong_digit_is_never_a_card_or_an_iban() -> None:
    card, iban = "4111111111111111", "DE89370400440532013000"
    for place in range(1, 16):
        changed = card[:place] + str((int(card[place]) + 3) % 10) + card[place + 1 :]
        assert not is_card_number(changed)
    for place in range(4, 22):
        changed = iban[:place] + str((int(iban[place]) + 3) % 10) + iban[place + 1 :]
        assert not is_iban(changed)


PIECES = [
    "@",
    ".",
    "1",
    "0",
    " ",
    "-",
    "a",
    "+",
    "(",
    ":",
    "::",
    "4111 1111 ",
    "a@b.",
    "DE89 ",
    "٣",
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, *(t for _, t in TRUE)]), max_size=30))
def test_spans_are_apart_and_in_order(pieces: list[str]) -> None:
    text = "".join(pieces)
    spans = find_spans(text)
    assert all(0 <= s.start < s.end <= len(text) and s.kind in KINDS for s in spans)
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))


HOSTILE = [piece * 50_000 for piece in PIECES] + [
    "1" * 1_000_000,
    "1 " * 500_000,
    "4111-" * 200_000,
    "a@" * 300_000,
    "@a." * 300_000,
    "." * 1_000_000 + "@a.com",
    "a" * 1_000_000 + "@" + "a" * 1_000_000,
    "+1 " * 300_000,
    "2001:" * 200_000,
    "01 23 " * 200_000,
    "1.1." * 250_000,
    "AA00 " * 200_000,
    "(0" * 500_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: repr(t[:8]))
def test_hostile_text_does_not_hang(text: str) -> None:
    """Where time grew with the square of the text, one of these would take hours."""
    spans = find_spans(text[:120_000])
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))


def run(stage: Pii, texts: list[str | None]) -> list[dict[str, object]]:
    batch = pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], ["text"])
    out = stage.annotate(batch, None, None)  # type: ignore[arg-type]
    assert out.schema.equals(stage.writes)
    return out.to_pylist()


def test_columns() -> None:
    found, nothing, null = run(Pii(redact=True), ["a@b.org or +49 30 901820", "", None])
    assert (found["num_emails"], found["num_phones"]) == (1, 1)
    assert found["pii_spans"] == [
        {"kind": "email", "start": 0, "end": 7},
        {"kind": "phone", "start": 11, "end": 24},
    ]
    assert found["redacted_text"] == "<EMAIL> or <PHONE>"
    assert nothing["pii_spans"] == []
    assert nothing["redacted_text"] == ""
    assert {null[name] for name in null if name != "pii_error"} == {None}
    assert null["pii_error"] == "missing"
    assert set(COUNTS) == set(KINDS)
    assert "redacted_text" not in Pii().writes.names


def test_what_overlaps_a_dropped_number_is_found() -> None:
    """The second number overlaps the first and is dropped; the third overlaps the second only."""
    text = "+49 30 123456  0049 30 1234567/ 01.23.45.67.89"
    assert [text[s.start : s.end] for s in find_spans(text)] == [
        "+49 30 123456  0049",
        "01.23.45.67.89",
    ]
