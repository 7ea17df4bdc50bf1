"""Untrusted text to a URL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from winnow.stages._fetch.outcome import FetchFailure
from winnow.stages._fetch.urls import parse_url, redirect_target


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("http://a.test/x.jpg", "http://a.test/x.jpg"),
        ("  HTTP://A.test/x.jpg\n", "http://A.test/x.jpg"),
        ("http://a.test", "http://a.test/"),
        ("http://a.test/x#part", "http://a.test/x"),
        ("https://a.test:8443/x?sig=%2b%7E%2F&u=a+b", "https://a.test:8443/x?sig=%2b%7E%2F&u=a+b"),
        ("http://a.test/caf\u00e9 1.jpg", "http://a.test/caf%C3%A9%201.jpg"),
        ("http://a.test/100%.jpg", "http://a.test/100%25.jpg"),
        ("http://b\u00fccher.test/x", "http://xn--bcher-kva.test/x"),
        ("http://under_score.test/x", "http://under_score.test/x"),
        ("http://[2606:4700::1111]/x", "http://[2606:4700::1111]/x"),
        ("http://8.8.8.8/x", "http://8.8.8.8/x"),
    ],
)
def test_what_is_sent(text, sent):
    url = parse_url(text)
    assert f"{url.scheme}://{url.raw_authority}{url.raw_path_qs}" == sent


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "missing_url"),
        ("", "missing_url"),
        (" \t\n", "missing_url"),
        ("x.jpg", "bad_url"),
        ("www.a.test/x.jpg", "bad_url"),
        ("//a.test/x.jpg", "bad_url"),
        ("http://", "bad_url"),
        ("http:///x", "bad_url"),
        ("http://[]@", "bad_url"),
        ("http:x", "bad_url"),
        ("http://a.test:99999/", "bad_url"),
        ("http://a.test:-1/", "bad_url"),
        ("http://a.test:0/", "bad_url"),
        ("http://a.test:80x/", "bad_url"),
        ("http://user@a.test/", "bad_url"),
        ("http://user:password@a.test/", "bad_url"),
        ("http://a.test\\@127.0.0.1/", "bad_url"),
        ("http://a.test/\0", "bad_url"),
        ("http://a.test/\r\nHost: b.test", "bad_url"),
        ("http://a b.test/", "bad_url"),
        ("http://[::1/", "bad_url"),
        ("http://[fe80::1%25eth0]/", "bad_url"),
        ("http://127.1/", "bad_url"),
        ("http://2130706433/", "bad_url"),
        ("http://0x7f.0.0.1/", "bad_url"),
        ("http://0177.0.0.01/", "bad_url"),
        ("http://1.2.3.4.5/", "bad_url"),
        ("http://127.0.0.1./", "bad_url"),
        ("http://\uff11\uff12\uff17.1/", "bad_url"),
        ("http://" + "a" * 9000, "bad_url"),
        ("file:///etc/passwd", "scheme_not_allowed"),
        ("FTP://a.test/x", "scheme_not_allowed"),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "scheme_not_allowed"),
        ("s3://bucket/x.jpg", "scheme_not_allowed"),
    ],
)
def test_what_is_refused(text, code):
    with pytest.raises(FetchFailure) as failure:
        parse_url(text)
    assert failure.value.code == code


@given(
    st.text(max_size=40).map("http://".__add__)
    | st.text(alphabet="htp:/@[]%.0x1a?#\\ \u00e9\uff11", max_size=30)
    | st.text(alphabet="@[]%.:0x17f/\\", max_size=20).map("http://".__add__)
)
def test_any_text_is_a_url_or_a_code(text):
    try:
        url = parse_url(text)
    except FetchFailure as failure:
        assert failure.code in {"missing_url", "bad_url", "scheme_not_allowed"}
    else:
        assert url.scheme in ("http", "https")
        assert url.raw_host and url.raw_host.isascii()
        assert 0 < url.port < 65536
        assert url.user is None and url.password is None


@given(
    st.text(max_size=40)
    | st.binary(max_size=40).map(lambda b: b.decode("utf-8", "surrogateescape"))
)
def test_any_location_is_a_url_or_a_code(location):
    try:
        url = redirect_target(URL("http://a.test/dir/x"), location)
    except FetchFailure as failure:
        codes = {"missing_url", "bad_url", "scheme_not_allowed", "bad_redirect"}
        assert failure.code in codes
    else:
        assert url.scheme in ("http", "https")
