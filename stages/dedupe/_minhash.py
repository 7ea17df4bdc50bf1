"""MinHash over word n-grams, vectorised over many texts; candidates by bands; exact Jaccard.

MinHash: Broder, "On the resemblance and containment of documents" (1997). Bands: Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3.4.

No Python loop runs per word. A chunk of texts is one byte array; a word's hash is a polynomial of
its bytes modulo 2**64 (sums of products over all bytes, one difference per word), mixed; a
shingle's hash is a weighted sum of its words' hashes, mixed. Integer arithmetic only: the same
values on every machine.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from winnow.stages.dedupe._hamming import Indices, expand, split_ranges

Words = npt.NDArray[np.uint64]
Signatures = npt.NDArray[np.uint32]

HASH_BITS = 48
"""Of a shingle; the 16 bits above hold the number of a text or of a pair within a block."""
_BLOCK_ITEMS = 1 << 16
_BLOCK_PAIRS = 1 << 13
_BLOCK_SHINGLES = 1 << 20
_PIECE_BYTES = 1 << 20
_TABLE_BITS, _TABLE_SETS = 14, 64
_MASK = np.uint64((1 << HASH_BITS) - 1)
_BASE = 0x9E3779B97F4A7C15
"""Odd, so that its powers have inverses modulo 2**64."""

# Each of these characters is a word of its own; marks stay with the letter before them.
_HAN = "\u3041-\u3096\u30a1-\u30fa\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_NO_SPACES = re.compile(
    f"[{_HAN}\U00020000-\U0003ffff\u0e01-\u0e2e\u0e81-\u0eae\u1000-\u102a\u1780-\u17a2]"
)  # Han, kana; consonants of Thai, Lao, Burmese, Khmer


def _constants(label: str, count: int) -> Words:
    """Return random words that no library's generator decides."""
    digests = (hashlib.blake2b(f"{label}{i}".encode(), digest_size=8) for i in range(count))
    return np.frombuffer(b"".join(d.digest() for d in digests), "<u8").astype(np.uint64)


def _word_bytes() -> npt.NDArray[np.bool_]:
    kinds = np.zeros(256, bool)
    kinds[128:] = True
    for byte in b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        kinds[byte] = True
    return kinds


def _byte_values() -> Words:
    values = _constants("byte", 256)
    values[65:91] = values[97:123]  # ASCII capitals are their small letters
    return values


@functools.cache
def _powers(base: int, count: int) -> Words:
    powers = np.full(count, base % 2**64, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


_IS_WORD = _word_bytes()
_BYTES = _byte_values()


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """How texts are hashed: ``ngram`` words a shingle, signatures of ``bands * rows`` values."""

    ngram: int
    bands: int
    rows: int

    @property
    def num_permutations(self) -> int:
        """Values in a signature; what the bands do not use is not computed."""
        return self.bands * self.rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Hashed:
    """Texts of a chunk. A text without a word has no shingle, no digest and a signature of ones.

    shingles: sorted distinct hashes, text after text.  sizes: how many of each text.
    signatures: (texts, permutations).  digests: BLAKE2b-128 of the words in order, (texts, 16).
    """

    shingles: Words
    sizes: Indices
    signatures: Signatures
    digests: npt.NDArray[np.uint8]


def normalise(text: str) -> bytes:
    """Return the words of a text as UTF-8 between bytes that are no letters and digits.

    A word is a run of letters, digits and marks after NFKC and case folding; all else separates.
    Han, kana, Thai, Lao, Burmese and Khmer write no spaces: each letter, with its marks, is a word.
    """
    if text.isascii():
        return text.encode()  # case and punctuation of ASCII are the byte tables' work
    text = unicodedata.normalize("NFKC", text).casefold()
    if _NO_SPACES.search(text):
        text = _NO_SPACES.sub(_alone, text)
    return _separators().sub(" ", text).encode("utf-8", "replace")


def _alone(match: re.Match[str]) -> str:
    letter = match.group()
    return f" {letter}" if "\u0e00" <= letter < "\u1800" else f" {letter} "


@functools.cache
def _separators() -> re.Pattern[str]:
    """Match runs of what is neither letter, digit nor mark; ASCII is left to the byte tables."""
    ranges, start = [], -1
    for code in range(128, 0x110001):
        separates = code < 0x110000 and unicodedata.category(chr(code))[0] not in "LNM"
        if separates and start < 0:
            start = code
        elif not separates and start >= 0:
            ranges.append(f"{re.escape(chr(start))}-{re.escape(chr(code - 1))}")
            start = -1
    return re.compile(f"[{''.join(ranges)}]+")


def mix(values: Words) -> Words:
    """Return a bijection of 64-bit words in which every bit depends on every bit.

    Source: the finaliser of MurmurHash3 (Appleby, public domain).
    """
    values = values ^ (values >> np.uint64(33))
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


class Hasher:
    """Hashes chunks of texts; threads may share it. The process keeps 16 MB of powers."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme
        self._powers = _powers(_BASE, _PIECE_BYTES + 1)
        self._inverse = _powers(pow(_BASE, -1, 2**64), _PIECE_BYTES + 1)
        self._weights = _constants("place", scheme.ngram) | np.uint64(1)
        factors = _constants("permutation", 2 * scheme.num_permutations).astype(np.uint32)
        self._factors = factors[: scheme.num_permutations] | np.uint32(1)
        self._offsets = factors[scheme.num_permutations :]

    def hash(self, texts: Sequence[bytes]) -> Hashed:
        """Return hashes of normalised texts, fewer than 65,536."""
        words, counts = self._words(texts)
        raw, ends = words.astype("<u8").tobytes(), 8 * np.cumsum(counts)
        digests = np.zeros((len(texts), 16), np.uint8)
        for text in np.flatnonzero(counts):
            piece = raw[ends[text] - 8 * counts[text] : ends[text]]
            digest = hashlib.blake2b(piece, digest_size=16).digest()
            digests[text] = np.frombuffer(digest, np.uint8)
        shingles, owners = self._shingles(words, counts)
        keys = (owners.astype(np.uint64) << np.uint64(HASH_BITS)) | (shingles >> np.uint64(16))
        keys.sort()
        new = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=new[1:])
        keys = keys[new]
        sizes = np.bincount((keys >> np.uint64(HASH_BITS)).astype(np.int64), minlength=len(texts))
        keys &= _MASK
        return Hashed(
            shingles=keys, sizes=sizes, signatures=self._signatures(keys, sizes), digests=digests
        )

    def _words(self, texts: Sequence[bytes]) -> tuple[Words, Indices]:
        """Return the hashes of all words, and how many each text has."""
        if sum(map(len, texts)) + len(texts) > _PIECE_BYTES and len(texts) > 1:
            parts = [self._words([text]) for text in texts]
            return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        if len(texts) == 1:
            found = [self._piece(piece)[0] for piece in _pieces(texts[0])]
            words = np.concatenate([np.empty(0, np.uint64), *found])
            return words, np.array([len(words)])
        words, starts = self._piece(b" ".join(texts) + b" ")
        lengths = np.array([len(text) + 1 for text in texts], np.int64)
        bounds = np.searchsorted(starts, np.cumsum(lengths))
        return words, np.diff(bounds, prepend=0)

    def _piece(self, data: bytes) -> tuple[Words, Indices]:
        """Return the hash of every word, and the place of its first byte."""
        octets = np.frombuffer(data, np.uint8)
        inside = np.zeros(len(octets) + 2, bool)
        inside[1:-1] = _IS_WORD[octets]
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        starts, ends = edges[::2], edges[1::2]
        sums = np.zeros(len(octets) + 1, np.uint64)
        np.multiply(_BYTES[octets], self._powers[: len(octets)], out=sums[1:])
        np.cumsum(sums, out=sums)
        hashes = (sums[ends] - sums[starts]) * self._inverse[starts]
        return mix(hashes), starts

    def _shingles(self, words: Words, counts: Indices) -> tuple[Words, Indices]:
        """Return the hash of every run of ``ngram`` words within a text, and its text.

        A text of fewer words, but one, has one shingle: all its words.
        """
        ngram = self._scheme.ngram
        total = np.zeros(max(0, len(words) - ngram + 1), np.uint64)
        for place, weight in enumerate(self._weights):
            total += words[place : place + len(total)] * weight
        starts = np.cumsum(counts) - counts
        per_text = np.maximum(counts - ngram + 1, 0)
        rows = expand(starts, per_text)
        owners = np.repeat(np.arange(len(counts)), per_text)
        short = np.flatnonzero((counts > 0) & (counts < ngram))
        few = np.zeros(len(short), np.uint64)
        for place, weight in enumerate(self._weights[:-1]):
            has = counts[short] > place
            few[has] += words[starts[short[has]] + place] * weight
        return mix(np.concatenate((total[rows], few))), np.concatenate((owners, short))

    def _signatures(self, shingles: Words, sizes: Indices) -> Signatures:
        """Return the minima of a * x + b modulo 2**32, for each text and permutation."""
        values = shingles.astype(np.uint32)
        texts = np.flatnonzero(sizes)
        starts = (np.cumsum(sizes) - sizes)[texts]
        found = np.full((len(self._factors), len(sizes)), 2**32 - 1, np.uint32)
        permuted = np.empty_like(values)
        for row, (factor, offset) in enumerate(zip(self._factors, self._offsets, strict=True)):
            np.multiply(values, factor, out=permuted)
            np.add(permuted, offset, out=permuted)
            if len(texts):
                found[row, texts] = np.minimum.reduceat(permuted, starts)
        return np.ascontiguousarray(found.T)


def _pieces(data: bytes) -> Iterator[bytes]:
    """Cut a text between words; a word of more than a megabyte is cut into several."""
    first = 0
    while len(data) - first > _PIECE_BYTES:
        window = np.frombuffer(data, np.uint8, _PIECE_BYTES, first)
        gaps = np.flatnonzero(~_IS_WORD[window])
        size = int(gaps[-1]) + 1 if len(gaps) else _PIECE_BYTES
        yield data[first : first + size]
        first += size
    yield data[first:]


def choose_bands(threshold: float, num_permutations: int, recall: float) -> tuple[int, int]:
    """Return (bands, rows): the most rows at which a pair with Jaccard ``threshold`` agrees in a
    band with probability ``recall``; 1 - (1 - J**rows)**bands."""
    best = (num_permutations, 1)
    for rows in range(2, num_permutations + 1):
        bands = num_permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= recall:
            best = (bands, rows)
    return best


def least_matches(threshold: float, num_permutations: int, loss: float) -> int:
    """Return the most equal values m such that a pair with Jaccard ``threshold``, whose equal
    values are binomial, has fewer than m with probability ``loss`` at most."""
    below = 0.0
    for matches in range(num_permutations + 1):
        ways = math.comb(num_permutations, matches)
        below += ways * threshold**matches * (1 - threshold) ** (num_permutations - matches)
        if below > loss:
            return matches
    return num_permutations


class Bands:
    """Finds the pairs of items whose signatures agree in a band.

    signatures: (rows, permutations), possibly a mapped file.  rows_of_items: which are searched.
    least: pairs that agree in fewer values are left out.
    """

    def __init__(
        self, signatures: Signatures, rows_of_items: Indices, scheme: Scheme, least: int
    ) -> None:
        self._signatures, self._rows, self._scheme = signatures, rows_of_items, scheme
        self._least = least
        self._weights = _constants("band", scheme.rows) | np.uint64(1)

    def _buckets(self, band: int) -> tuple[Indices, Indices, Indices]:
        """Return items in order of the band's values, where buckets start, and their sizes."""
        first = band * self._scheme.rows
        keys = np.zeros(len(self._rows), np.uint64)
        for place, weight in enumerate(self._weights):
            column = np.asarray(self._signatures[:, first + place])[self._rows]
            keys = mix(keys + column.astype(np.uint64) * weight)
        order = np.argsort(keys, kind="stable")
        new = np.ones(len(order), bool)
        new[1:] = keys[order[1:]] != keys[order[:-1]]
        starts = np.flatnonzero(new)
        sizes = np.diff(starts, append=len(order))
        return order, starts[sizes > 1], sizes[sizes > 1]

    def count_comparisons(self) -> int:
        """Return exactly how many pairs of signatures ``pairs`` will compare."""
        total = 0
        for band in range(self._scheme.bands):
            sizes = self._buckets(band)[2]
            total += int((sizes * (sizes - 1) // 2).sum())
        return total

    def pairs(self) -> Iterator[tuple[Indices, Indices]]:
        """Yield blocks of pairs (left < right as items), each pair once: where it agrees first."""
        for band in range(self._scheme.bands):
            order, starts, sizes = self._buckets(band)
            members = expand(starts, sizes)
            later = np.repeat(starts + sizes, sizes) - members - 1
            for part in split_ranges(later, _BLOCK_PAIRS):
                left = np.repeat(order[members[part]], later[part])
                right = order[expand(members[part] + 1, later[part])]
                near = self._agree(left, right, band)
                left, right = left[near], right[near]
                yield np.minimum(left, right), np.maximum(left, right)

    def _agree(self, left: Indices, right: Indices, band: int) -> Indices:
        same = self._signatures[self._rows[left]] == self._signatures[self._rows[right]]
        enough = np.flatnonzero(np.count_nonzero(same, axis=1) >= self._least)
        parts = same[enough, : (band + 1) * self._scheme.rows]
        agree = parts.reshape(len(enough), band + 1, self._scheme.rows).all(axis=2)
        # The last column is true but where two different values of a band share a key.
        return enough[(agree.argmax(axis=1) == band) & agree[:, band]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sets:
    """Sets of shingles, one after the other in a file: where each starts, how many it has."""

    shingles: Words
    starts: Indices
    sizes: Indices

    def similar(
        self, left: Indices, right: Indices, threshold: float
    ) -> tuple[Indices, npt.NDArray[np.float32]]:
        """Return which pairs of sets have at least that Jaccard similarity, and what they have."""
        least = np.float32(threshold)
        a, b = self.sizes[left], self.sizes[right]
        maybe = np.flatnonzero(_jaccard(np.minimum(a, b), a, b) >= least)
        bound = self._most_shared(left[maybe], right[maybe])
        maybe = maybe[_jaccard(bound, a[maybe], b[maybe]) >= least]
        found = _jaccard(self._shared(left[maybe], right[maybe]), a[maybe], b[maybe])
        return maybe[found >= least], found[found >= least]

    def _most_shared(self, left: Indices, right: Indices) -> Indices:
        """Return at least as many as each pair shares: equal low bits of hashes.

        Far cheaper than ``_shared`` where many pairs have one left set.
        """
        most = np.zeros(len(left), np.int64)
        seen = np.zeros(_TABLE_SETS << _TABLE_BITS, bool)
        order = np.argsort(left, kind="stable")
        sets, numbers = np.unique(left[order], return_inverse=True)
        for first in range(0, len(sets), _TABLE_SETS):
            chosen = sets[first : first + _TABLE_SETS]
            here = self._slots(chosen, np.arange(len(chosen)))
            seen[here] = True
            low, high = np.searchsorted(numbers, (first, first + _TABLE_SETS))
            pairs = order[low:high]
            for part in split_ranges(self.sizes[right[pairs]], _BLOCK_SHINGLES):
                others = right[pairs[part]]
                hits = seen[self._slots(others, numbers[low:high][part] - first)]
                ends = np.cumsum(self.sizes[others])
                most[pairs[part]] = np.add.reduceat(hits, ends - self.sizes[others], dtype=np.int64)
            seen[here] = False
        return np.minimum(most, np.minimum(self.sizes[left], self.sizes[right]))

    def _slots(self, sets: Indices, rows: Indices) -> Indices:
        sizes = self.sizes[sets]
        low = self.shingles[expand(self.starts[sets], sizes)] & np.uint64((1 << _TABLE_BITS) - 1)
        return np.repeat(rows << _TABLE_BITS, sizes) + low.astype(np.int64)

    def _shared(self, left: Indices, right: Indices) -> Indices:
        """Return how many shingles each pair shares."""
        found = np.zeros(len(left), np.int64)
        for part in split_ranges(self.sizes[left] + self.sizes[right], _BLOCK_SHINGLES):
            for first in range(part.start, part.stop, _BLOCK_ITEMS):
                block = slice(first, min(first + _BLOCK_ITEMS, part.stop))
                both = np.concatenate((left[block], right[block]))
                places = expand(self.starts[both], self.sizes[both])
                number = np.tile(np.arange(len(both) // 2, dtype=np.uint64), 2)
                keys = np.repeat(number << np.uint64(HASH_BITS), self.sizes[both])
                keys |= self.shingles[places]
                keys.sort()
                twice = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(HASH_BITS)
                found[block] = np.bincount(twice.astype(np.int64), minlength=len(both) // 2)
        return found


def _jaccard(shared: Indices, left: Indices, right: Indices) -> npt.NDArray[np.float32]:
    """Return |A and B| / |A or B| from what they share and their sizes."""
    return (shared / (left + right - shared)).astype(np.float32)
