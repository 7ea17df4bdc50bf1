"""What marks a person in a text: e-mail, phone, IP address, card number, IBAN; each by its rule.

Every pattern is of bounded length, and a search goes on one character after a start that failed, so
that time is linear in the text whatever it holds.

Sources: ITU-T E.164 (phone numbers, country codes), North American Numbering Plan, RFC 5321
(lengths of an address), RFC 4291, ISO/IEC 7812 (card numbers; Luhn), ISO 13616 (IBAN).
"""

from __future__ import annotations

import bisect
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

KINDS = ("email", "ip_address", "card_number", "iban", "phone")
"""In order of precedence: what an earlier one has taken is not looked at by a later one."""


class Span(NamedTuple):
    """Where something was found: Unicode code points from ``start`` up to ``end``."""

    kind: str
    start: int
    end: int


_DIGIT = re.compile("[0-9]")
_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-][A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{0,63}\Z")
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_-])"
)
_QUOTES = "'`{|}*!/=?^~#$%&"
_IPV4 = re.compile(
    r"(?<![\w.])(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}"
    r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?!\w|\.[0-9])"
)
_VERSION = re.compile(r"(?:versions?|ver\.?|release|section|chapter|build)[ :=]{1,2}\Z", re.I)
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_CARD = re.compile(
    r"(?<![\w.-])(?:[0-9]{13,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?"
    r"|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5})(?!\w|[.-][0-9])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])([A-Z]{2})[0-9]{2}(?= ?[A-Z0-9])")
_PLUS = re.compile(r"(?<![\w+])\+[0-9](?:[ .()/-]{0,3}[0-9]){6,14}(?![0-9])")
_ZEROS = re.compile(r"(?<![\w.,+/-])(?<![0-9] )00[1-9](?:[ .()/-]{0,3}[0-9]){6,14}(?![0-9])")
_AMERICAN = re.compile(
    r"(?<![\w.,+/-])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])"
    r"[2-9][0-9]{2}[ .-][0-9]{4}(?!\w|[.,-][0-9])"
)
_TRUNK = re.compile(
    r"(?<![\w.,+/-])(?<![0-9] )(?:\(0[1-9][0-9]{0,4}\)|0[1-9][0-9]{0,4})"
    r"(?:[ /-]{1,3}[0-9]{2,8}){1,5}"
    r"(?!\w|[.,:/-][0-9])|(?<![\w.,+/-])0[1-9](?:\.[0-9]{2}){4}(?!\w|[.,][0-9])"
)
_DATE = re.compile(r"[0-9]{1,2}[/-][0-9]{1,2}[/-](?:19|20)[0-9]{2}(?![0-9])")
_COUNTRY = re.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|2(?:1[1-368]|2\d|3\d|4\d|5[0-8]|6\d|9[01789])|3(?:5\d|7[0-8]|8[0-35-79])|42[013]"
    r"|5(?:0\d|9\d)|6(?:7[02-9]|8[0-35-9]|9[0-2])|8(?:00|08|5[02356]|7[08]|8[0-36])"
    r"|9(?:6[0-8]|7[0-79]|9[2-68])"
)
# (prefixes from, to, lengths): of Visa, Mastercard, American Express, Discover, Diners, JCB,
# UnionPay, Maestro.
_CARDS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("4", "4", (13, 16, 19)),
    ("51", "55", (16,)),
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),
    ("37", "37", (15,)),
    ("6011", "6011", (16, 19)),
    ("644", "659", (16, 19)),
    ("300", "305", (14,)),
    ("36", "36", (14,)),
    ("38", "39", (14,)),
    ("3528", "3589", (16, 19)),
    ("62", "62", (16, 17, 18, 19)),
    ("5018", "5018", (16,)),
    ("5020", "5020", (16,)),
    ("6759", "6763", (16,)),
)
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}


def find_spans(text: str) -> list[Span]:
    """Return what was found, in order, without overlap."""
    taken: list[Span] = []
    for kind in KINDS if _DIGIT.search(text) else ("email",):
        found = [span for span in _FINDERS[kind](text) if not _overlaps(span, taken)]
        apart: list[Span] = []
        for span in sorted(found, key=_place):
            if not apart or span.start >= apart[-1].end:
                apart.append(span)
        taken = sorted([*taken, *apart], key=_place)
    return taken


def _place(span: Span) -> tuple[int, int]:
    return span.start, span.end


def _overlaps(span: Span, taken: list[Span]) -> bool:
    """Whether a span meets one of some that are in order and apart."""
    after = bisect.bisect_left(taken, span.end, key=lambda s: s.start)
    return after > 0 and taken[after - 1].end > span.start


def redact(text: str, spans: list[Span]) -> str:
    """Return the text with "<KIND>" in place of each span."""
    parts, last = [], 0
    for span in spans:
        parts += [text[last : span.start], f"<{span.kind.upper()}>"]
        last = span.end
    return "".join([*parts, text[last:]])


def _matches(
    text: str, kind: str, pattern: re.Pattern[str], valid: Callable[[re.Match[str]], bool]
) -> Iterator[Span]:
    """Yield valid matches; after one that is not, go on one character later."""
    place = 0
    while match := pattern.search(text, place):
        if valid(match):
            yield Span(kind, match.start(), match.end())
            place = match.end()
        else:
            place = match.start() + 1


def _emails(text: str) -> Iterator[Span]:
    place = text.find("@")
    last = 0
    while place >= 0:
        domain = _DOMAIN.match(text, place + 1, place + 256)
        if domain:
            first = _local_start(text, last, place)
            if first < place:
                yield Span("email", first, domain.end())
                last = domain.end()
        place = text.find("@", place + 1)


def _local_start(text: str, least: int, end: int) -> int:
    """Return where the name before an "@" starts; ``end`` where there is none."""
    first = max(least, end - 64)
    window = text[first:end]
    allowed = re.search(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]*\Z", window)
    name = allowed.group() if allowed else ""
    name = name.lstrip("." + _QUOTES)  # a quote or bracket in front of it
    if not name or name.endswith(".") or ".." in name or not _LOCAL.match(name):
        return end
    before = text[end - len(name) - 1 : end - len(name)]
    return end if before.isalnum() else end - len(name)


def _ip_addresses(text: str) -> Iterator[Span]:
    def public(match: re.Match[str]) -> bool:
        before = text[max(0, match.start() - 12) : match.start()]
        return ipaddress.IPv4Address(match.group()).is_global and not _VERSION.search(before)

    def valid(match: re.Match[str]) -> bool:
        try:
            return ipaddress.IPv6Address(match.group()).is_global
        except ValueError:
            return False

    if "." in text:
        yield from _matches(text, "ip_address", _IPV4, public)
    if ":" in text:
        yield from _matches(text, "ip_address", _IPV6, valid)


def _card_numbers(text: str) -> Iterator[Span]:
    return _matches(text, "card_number", _CARD, lambda m: is_card_number(_digits(m.group())))


def is_card_number(digits: str) -> bool:
    """Whether digits have a known issuer's prefix and length, and the check digit of Luhn."""
    known = any(
        low <= digits[: len(low)] <= high and len(digits) in sizes for low, high, sizes in _CARDS
    )
    return known and luhn(digits) and len(set(digits)) > 1


def luhn(digits: str) -> bool:
    """Whether the sum of digits, every second one from the right doubled, is a multiple of 10."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _ibans(text: str) -> Iterator[Span]:
    place = 0
    while match := _IBAN.search(text, place):
        place = match.start() + 1
        rest = _IBAN_LENGTHS.get(match[1], 4) - 4
        if not rest:
            continue
        whole = re.compile(rf"(?: ?[A-Z0-9]){{{rest}}}(?![A-Za-z0-9])").match(text, match.end())
        if whole and is_iban(text[match.start() : whole.end()].replace(" ", "")):
            yield Span("iban", match.start(), whole.end())
            place = whole.end()


def is_iban(number: str) -> bool:
    """Whether the number, first four characters last and letters as 10 to 35, is 1 modulo 97."""
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1


def _phones(text: str) -> Iterator[Span]:
    found = [
        *_matches(text, "phone", _PLUS, lambda m: _is_international(_digits(m.group()))),
        *_matches(text, "phone", _ZEROS, _is_dialled),
        *_matches(text, "phone", _AMERICAN, lambda m: True),
        *_matches(text, "phone", _TRUNK, _is_national),
    ]
    yield from sorted(found, key=lambda span: (span.start, -span.end))


def _is_international(digits: str) -> bool:
    if not 8 <= len(digits) <= 15 or not _COUNTRY.match(digits):
        return False
    if digits[0] == "1":
        return len(digits) == 11 and digits[1] in "23456789" and digits[4] in "23456789"
    return True


def _is_dialled(match: re.Match[str]) -> bool:
    text = match.group()
    return not text.isdigit() and _is_international(_digits(text)[2:])


def _is_national(match: re.Match[str]) -> bool:
    return 9 <= len(_digits(match.group())) <= 11 and not _DATE.match(match.group())


def _digits(text: str) -> str:
    return "".join(filter(str.isdecimal, text))


_FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "ip_address": _ip_addresses,
    "card_number": _card_numbers,
    "iban": _ibans,
    "phone": _phones,
}
