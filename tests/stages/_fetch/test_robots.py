"""robots.txt against RFC 9309's own examples and a naive matcher; opt-out headers."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.stages._fetch.robots import (
    RobotsRules,
    normalise_path,
    opts_out,
    parse_robots,
    pattern_matches,
)

RFC_5_1 = b"""\
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""


@pytest.mark.parametrize(
    ("token", "path", "allowed"),
    [
        ("other", "/a.gif", False),
        ("other", "/a.gif?x", True),
        ("other", "/example/page.html", False),
        ("other", "/publications/x.gif", True),  # 14 characters beat 6
        ("other", "/else", True),
        ("foobot", "/example/page.html", True),
        ("foobot", "/example/allowed.gif", True),
        ("foobot", "/example/", False),
        ("barbot", "/example/page.html", False),
        ("bazbot", "/example/page.html", False),
        ("barbot", "/a.gif", True),
        ("quxbot", "/example/page.html", True),
    ],
)
def test_rfc_9309_section_5_1(token, path, allowed):
    assert parse_robots(RFC_5_1, token).allows(path) is allowed


@pytest.mark.parametrize(
    ("path", "allowed"), [("/example/page/disallowed.gif", False), ("/example/page/x.gif", True)]
)
def test_rfc_9309_section_5_2_the_longest_match_wins(path, allowed):
    body = b"User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n"
    assert parse_robots(body, "foobot").allows(path) is allowed


@pytest.mark.parametrize(
    ("rule", "path", "matches"),  # RFC 9309 2.2.2 and 2.2.3
    [
        ("/foo/bar?baz=quz", "/foo/bar?baz=quz", True),
        ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https://foo.bar", True),
        ("/foo/bar/\u30c4", "/foo/bar/%E3%83%84", True),
        ("/foo/bar/%E3%83%84", "/foo/bar/%e3%83%84", True),
        ("/foo/bar/%62%61%7A", "/foo/bar/baz", True),
        ("/a%2fb", "/a/b", False),
        ("/fish*", "/fishheads", True),
        ("/fish/", "/fish", False),
        ("/*.php$", "/folder/file.php", True),
        ("/*.php$", "/file.php?x", False),
        ("/*.php", "/file.php5", True),
        ("/fish*.php", "/fishheads/catfish.php?p", True),
        ("/fish*.php", "/Fish.PHP", False),
    ],
)
def test_patterns(rule, path, matches):
    rules = RobotsRules(((False, normalise_path(rule)),))
    assert rules.allows(path) is not matches


@given(
    st.text(alphabet="ab*$/", max_size=8).map("/".__add__),
    st.text(alphabet="ab/$", max_size=10).map("/".__add__),
)
def test_matching_against_a_regular_expression(pattern, path):
    anchored = pattern.endswith("$")
    body = "".join(".*" if c == "*" else re.escape(c) for c in pattern.removesuffix("$"))
    expected = re.match(body + (r"\Z" if anchored else ""), path, re.DOTALL) is not None
    assert pattern_matches(pattern, path) is expected


def test_equal_length_allows():
    body = b"User-agent: *\nDisallow: /page\nAllow: /page\n"
    assert parse_robots(body, "winnow").allows("/page")


def test_groups_of_one_agent_are_merged_and_other_lines_do_not_split_them():
    body = b"""\xef\xbb\xbf# comment
User-agent: Winnow-Data/1.0
Sitemap: https://a.test/map.xml
Disallow: /a   # the reason

User-agent: x
Disallow: /

user-agent: WINNOW-DATA
crawl-delay: 3
disallow: /b
"""
    rules = parse_robots(body, "winnow-data")
    assert [rules.allows(p) for p in ("/a", "/b", "/c")] == [False, False, True]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\x00",
        b"<html>not found: /</html>",
        b"Disallow: /",
        b"User-agent: *\nDisallow:",
    ],
)
def test_no_rules_allow_all(body):
    assert parse_robots(body, "winnow").allows("/x")


@given(st.binary(max_size=200))
def test_any_bytes_parse(body):
    assert parse_robots(b"User-agent: *\n" + body, "winnow").allows("/x") in (True, False)


def test_a_hostile_pattern_is_cheap():
    rules = parse_robots(b"User-agent: *\nDisallow: /" + b"a*" * 5000 + b"b$\n", "winnow")
    start = time.monotonic()
    assert rules.allows("/" + "a" * 8000)
    assert time.monotonic() - start < 2


REFUSED = frozenset({"noai", "noimageai", "noindex", "tdm-reservation"})


@pytest.mark.parametrize(
    ("tags", "refused"),
    [
        ([], False),
        (["all"], False),
        (["noai"], True),
        (["NoAI"], True),
        (["nofollow, noimageai"], True),
        (["none"], True),  # noindex, nofollow
        (["nofollow", "noindex"], True),
        (["nofollow, noarchive"], False),
        (["googlebot: noindex"], False),
        (["googlebot: nofollow, noindex"], False),
        (["winnow-data: noai"], True),
        (["Winnow-Data: noai"], True),
        (["*: noai"], True),
        (["otherbot: noindex, winnow-data: noai"], True),
        (["unavailable_after: 25 Jun 2030 15:00:00 GMT, noai"], True),
        (["unavailable_after: Sat, 25 Jun 2030 15:00:00 GMT, noai"], True),
        (["unavailable_after: Saturday, 25-Jun-30 15:00:00 GMT, noai"], True),
        (["otherbot: unavailable_after: Sat, 25 Jun 2030 15:00:00 GMT, noai"], False),
        (["max-image-preview: large, noai"], True),
        (["unavailable_after: 25 Jun 2030 15:00:00 GMT"], False),
        ([",,:,: :"], False),
    ],
)
def test_x_robots_tag(tags, refused):
    assert opts_out(tags, None, "winnow-data", REFUSED) is refused


def test_tdm_reservation():
    assert opts_out([], "1", "winnow-data", REFUSED)
    assert not opts_out([], "0", "winnow-data", REFUSED)
    assert not opts_out([], "1", "winnow-data", frozenset({"noai"}))
