"""Which addresses may be connected to: public ones, checked where the connection is made."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from winnow.contracts.errors import SetupError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_DENIED_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host agent: public in form, answers inside every Azure VM
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_DENIED_V6 = tuple(
    ipaddress.IPv6Network(text)
    for text in ("2001::/23", "2001:db8::/32", "3fff::/20")  # Teredo, ORCHID, documentation
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_DNS_THREADS = 64
_NO_SUCH_NAME = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)
)


def is_public(address: Address) -> bool:
    """Return whether an address belongs to the public internet.

    IPv4 inside IPv6 counts as that IPv4 address: mapped (::ffff:0:0/96), NAT64 (64:ff9b::/96) and
    6to4 (2002::/16). Everything else outside 2000::/3 is refused, so multicast, link-local, unique
    local, site-local, loopback, IPv4-compatible and local-use NAT64 need no list. An own list, not
    ``ipaddress.is_global``, whose answers differ between patch releases of Python. Sources: the
    IANA special-purpose address registries, RFC 6052, RFC 3056.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _DENIED_V4)
    if address.scope_id is not None:
        return False
    embedded = address.ipv4_mapped or address.sixtofour
    if embedded is None and address in _NAT64:
        embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if embedded is not None:
        return is_public(embedded)
    return address in _GLOBAL_UNICAST and not any(address in network for network in _DENIED_V6)


class PrivateAddressError(OSError):
    """A name or URL leads to an address that is not public."""


class NoSuchNameError(OSError):
    """The DNS says that the name does not exist or has no address."""


def parse_pins(resolve: Mapping[str, str]) -> dict[str, tuple[Address, int]]:
    """Return host name -> (address, port) from ``{"scenes.test": "127.0.0.1:8080"}``.

    IPv6 is written "[::1]:8080". Raises SetupError: it is a run-time option, not the recipe's.
    """
    pins = {}
    for host, target in resolve.items():
        literal, _, port = target.rpartition(":")
        try:
            address = ipaddress.ip_address(literal.removeprefix("[").removesuffix("]"))
            number = int(port)
        except ValueError:
            msg = f'resolve: {host!r}: {target!r} is not "address:port", for example 127.0.0.1:8080'
            raise SetupError(msg) from None
        if not 0 < number < 65536:
            msg = f"resolve: {host!r}: port {number} is not in 1..65535"
            raise SetupError(msg)
        if parse_literal(host) is not None:
            msg = f"resolve: {host!r} is an address; only a host name can be pinned to one"
            raise SetupError(msg)
        pins[host.lower()] = (address, number)
    return pins


def parse_literal(host: str) -> Address | None:
    """Return the address that a URL's host spells, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class AddressGuard(AbstractResolver):
    """The fetcher's resolver and socket maker: no connection goes where it does not allow.

    aiohttp connects to exactly the addresses that ``resolve`` returned, so a name that changes its
    address between check and connect gains nothing. ``open_socket`` looks again at what is about
    to be connected, whichever way it came (a literal address is never resolved).
    """

    def __init__(self, *, allow_private: bool, pins: Mapping[str, tuple[Address, int]]) -> None:
        self._allow_private = allow_private
        self._pins = dict(pins)
        self._pinned = frozenset((str(a), port) for a, port in self._pins.values())
        self._threads = ThreadPoolExecutor(_DNS_THREADS, thread_name_prefix="winnow-dns")

    def allows(self, address: Address) -> bool:
        """Return whether an address may be connected to, pins aside."""
        return self._allow_private or is_public(address)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name; all of them must be public, or the name is refused."""
        if pin := self._pins.get(host.lower()):
            return [_resolved(host, str(pin[0]), pin[1])]
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads, _lookup, host, port)
        except (socket.gaierror, UnicodeError) as error:
            unknown = isinstance(error, UnicodeError) or error.errno in _NO_SUCH_NAME
            raise (NoSuchNameError if unknown else OSError)(-1, f"{host}: {error}") from error
        if not found:
            raise NoSuchNameError(-1, f"{host} has no address")
        for text in found:
            if not self.allows(ipaddress.ip_address(text)):
                raise PrivateAddressError(-1, f"{host} leads to {text}")
        return [_resolved(host, text, port) for text in found]

    def open_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """Make the socket for one address, or refuse it. Called by aiohttp before each connect."""
        family, kind, protocol, _, target = info
        address = parse_literal(target[0])
        pinned = (target[0], target[1]) in self._pinned
        if not pinned and (address is None or not self.allows(address)):
            raise PrivateAddressError(-1, f"{target[0]} is not public")
        return socket.socket(family=family, type=kind, proto=protocol)

    async def close(self) -> None:
        """Stop the threads; a lookup that hangs is left to end by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def unknown_names(hosts: Sequence[str], timeout_s: float) -> list[str]:
    """Return the hosts that cannot be looked up; [] as soon as one can, or when the time is over.

    So a list says: none of these names can be used, for whatever reason.
    """
    threads = ThreadPoolExecutor(_DNS_THREADS, thread_name_prefix="winnow-dns")
    try:
        lookups = [threads.submit(_lookup, host, 0) for host in hosts]
        for lookup in as_completed(lookups, timeout_s):
            try:
                if lookup.result():
                    return []
            except (socket.gaierror, UnicodeError):
                continue
    except TimeoutError:
        return []
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    return list(hosts)


def _lookup(host: str, port: int) -> list[str]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def _resolved(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(
        hostname=host, host=address, port=port, family=family, proto=0, flags=flags
    )
