"""Fetching untrusted URLs from inside somebody's network: docs/guide.md, "Fetching".

addresses   which addresses are public; resolver and socket maker that enforce it
urls        text to a URL that may be asked for
robots      robots.txt and opt-out headers, as pure functions
politeness  slots per host, pauses, dead hosts, the robots.txt cache
budget      the total deadline
body        reading with caps, decompression, signature check
sniff       media signatures
client      one row: checks, request, redirects, retries
worker      all of it on a thread with its own event loop
"""

from winnow.stages._fetch.addresses import parse_literal, unknown_names
from winnow.stages._fetch.outcome import TRANSIENT_CODES, Fetched, FetchFailure, FetchPolicy
from winnow.stages._fetch.sniff import Modality, media_format
from winnow.stages._fetch.urls import parse_url
from winnow.stages._fetch.worker import FetchWorker

__all__ = [
    "TRANSIENT_CODES",
    "FetchFailure",
    "FetchPolicy",
    "FetchWorker",
    "Fetched",
    "Modality",
    "media_format",
    "parse_literal",
    "parse_url",
    "unknown_names",
]
