"""Which addresses count as public, and that the resolver and socket maker enforce it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.contracts.errors import SetupError
from winnow.stages._fetch.addresses import (
    AddressGuard,
    NoSuchNameError,
    PrivateAddressError,
    is_public,
    parse_pins,
)

PUBLIC_V4 = ["8.8.8.8", "1.1.1.1", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0"]
PUBLIC_V4 += ["169.253.0.1", "192.0.1.1", "198.17.0.1", "198.20.0.1", "223.255.255.255"]
PRIVATE_V4 = {
    "this network": ["0.0.0.0", "0.1.2.3"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"],
    "carrier-grade NAT": ["100.64.0.1", "100.127.255.255", "100.100.100.200"],
    "loopback": ["127.0.0.1", "127.255.255.254"],
    "link-local, cloud metadata": ["169.254.0.1", "169.254.169.254", "168.63.129.16"],
    "protocol assignments": ["192.0.0.1", "192.0.0.192"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1"],
    "benchmarking": ["198.18.0.1", "198.19.255.255"],
    "multicast": ["224.0.0.1", "239.255.255.255"],
    "reserved": ["240.0.0.1", "255.255.255.255"],
}
PRIVATE_V4_FLAT = [address for group in PRIVATE_V4.values() for address in group]


def embeddings(v4: str) -> dict[str, str]:
    """Return the IPv6 spellings of an IPv4 address, composed from their RFCs."""
    high, low = divmod(int(ipaddress.IPv4Address(v4)), 1 << 16)
    return {
        "mapped": f"::ffff:{v4}",
        "nat64": f"64:ff9b::{high:x}:{low:x}",
        "6to4": f"2002:{high:x}:{low:x}::1",
    }


@pytest.mark.parametrize("text", PUBLIC_V4)
def test_public_v4_and_its_embeddings(text):
    assert is_public(ipaddress.ip_address(text))
    for spelling in embeddings(text).values():
        assert is_public(ipaddress.ip_address(spelling)), spelling


@pytest.mark.parametrize("text", PRIVATE_V4_FLAT)
def test_private_v4_and_its_embeddings(text):
    assert not is_public(ipaddress.ip_address(text))
    for spelling in embeddings(text).values():
        assert not is_public(ipaddress.ip_address(spelling)), spelling


@pytest.mark.parametrize(
    "text", ["2606:4700::1111", "2a00:1450:4001::200e", "2001:4860:4860::8888"]
)
def test_public_v6(text):
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "::",
        "::1",
        "::8.8.8.8",  # IPv4-compatible
        "::ffff:0:8.8.8.8",  # IPv4-translated
        "64:ff9b:1::808:808",  # local-use NAT64
        "100::1",
        "2001::1",  # Teredo
        "2001:2::1",
        "2001:20::1",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_private_v6(text):
    assert not is_public(ipaddress.ip_address(text))


@given(st.ip_addresses(v=4))
def test_against_the_standard_library_v4(address):
    # Differences on purpose: multicast is "global" to the library; so are Azure's host agent and
    # the retired 6to4 relays; 192.0.0.0/24 is refused whole.
    special = ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
    if any(address in ipaddress.ip_network(n) for n in special):
        assert not is_public(address)
    else:
        assert is_public(address) == (address.is_global and not address.is_multicast)


@given(
    st.ip_addresses(v=6)
    | st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(ipaddress.IPv6Address)
)
def test_what_is_public_v6_is_so_to_the_standard_library(address):
    if is_public(address) and address.sixtofour is None and address.ipv4_mapped is None:
        assert address.is_global and not address.is_multicast


def guard(allow_private: bool = False, **pins: str) -> AddressGuard:
    return AddressGuard(allow_private=allow_private, pins=parse_pins(pins))


def resolve(a_guard: AddressGuard, host: str, port: int = 80):
    async def run():
        try:
            return await a_guard.resolve(host, port)
        finally:
            await a_guard.close()

    return asyncio.run(run())


def fake_dns(monkeypatch, *addresses: str) -> None:
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80)) for a in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: infos)


def test_one_private_address_among_public_ones_refuses_the_name(monkeypatch):
    fake_dns(monkeypatch, "8.8.8.8", "10.0.0.1")
    with pytest.raises(PrivateAddressError, match="mixed.test leads to 10.0.0.1"):
        resolve(guard(), "mixed.test")


def test_public_addresses_are_what_is_connected(monkeypatch):
    fake_dns(monkeypatch, "8.8.8.8", "1.1.1.1", "8.8.8.8")
    found = resolve(guard(), "good.test", 8080)
    assert [(f["host"], f["port"]) for f in found] == [("8.8.8.8", 8080), ("1.1.1.1", 8080)]


def test_localhost_is_looked_up_for_real():
    with pytest.raises(PrivateAddressError, match="localhost leads to"):
        resolve(guard(), "localhost")
    assert "127.0.0.1" in [f["host"] for f in resolve(guard(allow_private=True), "localhost")]


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "a..test"])
def test_names_that_cannot_be_encoded(host):
    with pytest.raises(NoSuchNameError):
        resolve(guard(), host)


def test_a_pin_replaces_address_and_port_and_ignores_case():
    (found,) = resolve(guard(**{"Scenes.test": "127.0.0.1:8080"}), "scenes.TEST", 80)
    assert (found["host"], found["port"]) == ("127.0.0.1", 8080)
    (found,) = resolve(guard(**{"scenes.test": "[::1]:8080"}), "scenes.test", 443)
    assert (found["host"], found["port"], found["family"]) == ("::1", 8080, socket.AF_INET6)


def info(host: str, port: int):
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "127.1", "2130706433", "name.test"])
def test_no_socket_for_what_is_not_a_public_address(host):
    with pytest.raises(PrivateAddressError):
        guard().open_socket(info(host, 80))


def test_a_socket_for_the_pinned_address_and_port_only():
    pinned = guard(site="127.0.0.1:8080")
    pinned.open_socket(info("127.0.0.1", 8080)).close()
    pinned.open_socket(info("8.8.8.8", 80)).close()
    with pytest.raises(PrivateAddressError):
        pinned.open_socket(info("127.0.0.1", 8081))


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"a.test": "127.0.0.1"}, 'is not "address:port"'),
        ({"a.test": "localhost:80"}, 'is not "address:port"'),
        ({"a.test": "127.0.0.1:0"}, "port 0 is not in 1..65535"),
        ({"a.test": "127.0.0.1:70000"}, "port 70000"),
        ({"10.0.0.1": "127.0.0.1:80"}, "only a host name can be pinned"),
    ],
)
def test_bad_pins(pins, message):
    with pytest.raises(SetupError, match=message):
        parse_pins(pins)
