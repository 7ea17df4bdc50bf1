"""What a site's owner allows: robots.txt (RFC 9309) and the opt-out headers of an answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_ROBOTS_BYTES = 500 * 1024
"""What RFC 9309 asks a crawler to parse at least; the rest is not parsed."""

_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
_TOKEN = re.compile(r"[A-Za-z_-]+|\*")
_DATE = re.compile(r"\s*\d")
"""What is left of a date behind its comma (``unavailable_after: Sat, 25 Jun 2030 15:00:00 GMT``)
has a colon too, and names no agent."""
_VALUED_DIRECTIVES = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)


def normalise_path(path: str) -> str:
    """Return a path and query with one spelling per octet, as RFC 9309 2.2.2 compares them."""

    def respell(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if character in _UNRESERVED else match[0].upper()

    ascii_path = "".join(
        c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode("utf-8", "replace"))
        for c in path
    )
    return _ESCAPE.sub(respell, ascii_path)


def pattern_matches(pattern: str, path: str) -> bool:
    """Match a rule's path: a prefix, ``*`` is any run of characters, a last ``$`` is the end.

    Linear in the path for each ``*``: no pattern of a hostile site can make it slow.
    """
    anchored = pattern.endswith("$")
    pieces = pattern.removesuffix("$").split("*")
    if not path.startswith(pieces[0]):
        return False
    position = len(pieces[0])
    if len(pieces) == 1:
        return not anchored or position == len(path)
    for piece in pieces[1:-1] if anchored else pieces[1:]:
        position = path.find(piece, position)
        if position < 0:
            return False
        position += len(piece)
    return not anchored or (len(path) - len(pieces[-1]) >= position and path.endswith(pieces[-1]))


@dataclass(frozen=True, slots=True)
class RobotsRules:
    """The rules of one robots.txt that concern one crawler: (allow, pattern)."""

    rules: tuple[tuple[bool, str], ...] = ()

    def allows(self, path: str) -> bool:
        """Return whether a path with its query may be fetched: longest match, allow wins a tie."""
        if not self.rules:
            return True
        path = normalise_path(path)
        matching = ((len(p), allow) for allow, p in self.rules if pattern_matches(p, path))
        return max(matching, default=(0, True))[1]


def parse_robots(body: bytes, token: str) -> RobotsRules:
    """Return the rules for a crawler with this product token (lower case), "*" where none is."""
    groups: dict[str, list[tuple[bool, str]]] = {}
    agents: list[str] = []
    in_rules = False
    for line in body[:MAX_ROBOTS_BYTES].decode("utf-8-sig", "replace").splitlines():
        key, colon, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            if in_rules:
                agents, in_rules = [], False
            match = _TOKEN.match(value)
            agents.append(match.group().lower() if match else "")
            groups.setdefault(agents[-1], [])
        elif key in ("allow", "disallow"):
            in_rules = True
            if value:  # an empty rule matches nothing
                for agent in agents:
                    groups[agent].append((key == "allow", normalise_path(value)))
    return RobotsRules(tuple(groups.get(token, groups.get("*", ()))))


def opts_out(
    robots_tags: Iterable[str], tdm_reservation: str | None, token: str, refused: frozenset[str]
) -> bool:
    """Return whether an answer's headers reserve what we want to do.

    ``X-Robots-Tag: [agent:] directive, ...``, any number of times; ``none`` says noindex. A
    directive that is addressed to another agent is not ours. ``tdm-reservation: 1`` is the W3C
    community's protocol for the text-and-data-mining opt-out of EU law.
    """
    if "tdm-reservation" in refused and (tdm_reservation or "").strip() == "1":
        return True
    for value in robots_tags:
        ours = True
        for part in value.lower().split(","):
            agent, colon, directive = part.partition(":")
            if colon and agent.strip() not in _VALUED_DIRECTIVES and not _DATE.match(agent):
                ours, part = agent.strip() in ("*", token), directive
            directive = "noindex" if part.strip() == "none" else part.strip()
            if ours and directive in refused:
                return True
    return False
