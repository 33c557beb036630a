"""Turns many texts at once into hashes of their runs of letters, sentences, lines and wholes (numpy, no copies kept).

Everything is compared after NFKC and case folding, without spacing and punctuation. Numbers are left out too wherever
a copy with other numbers shall be found. The hash of a run is the polynomial one of Karp and Rabin (1987) modulo 2^64:
with prefix sums, the hash of every run of a megabyte of text takes a few passes over it. Imports numpy: import this
where it is used.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

WINDOW = 40
"""Letters in a run. Of GSM8K's training rows, 0.5% share 35 letters with one of its test questions, 0.2% share 40."""
SEPARATOR = "\x1e"
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
MIX = np.uint64(0xFF51AFD7ED558CCD)
LETTER, DIGIT, END, STOP, LINE, SPACE = 1, 2, 3, 4, 5, 6
STOPS = ".?!:;。!?:;"
SHIFT = np.uint64(32)
DENSE, WEIGHT = 0x2E80, 3
"""From this code point on (Chinese, Japanese, Korean) a character says about as much as three letters of Latin."""


class Spans(NamedTuple):
    """Pieces of the texts: which text each is in, its hash, and how long it is in letters after normalisation."""

    text: Places
    hashes: Hashes
    length: Places

    def where(self, chosen: NDArray[np.bool_]) -> Spans:
        """Some of them."""
        return Spans(self.text[chosen], self.hashes[chosen], self.length[chosen])


@dataclass(frozen=True)
class Shingles:
    """The hashes of some texts.

    Attributes:
        windows: Of every run of `WINDOW` letters, also of those that go over the end of a text.
        ends: Where among the letters each text ends.
        sentences: Letters only. lines, wholes: letters and digits; a line, a whole text.
        exact: Whole texts with digits and punctuation.
    """

    windows: Hashes
    ends: Places
    sentences: Spans
    lines: Spans
    wholes: Spans
    exact: Spans

    def texts_of(self, places: Places) -> Places:
        """Which text the runs at these places of `windows` start in."""
        return np.searchsorted(self.ends, places, side="left").astype(np.int64)

    def inside(self) -> Places:
        """The places of the runs that end in the text that they start in."""
        places: Places = np.arange(len(self.windows))
        within: Places = places[self.texts_of(places) == self.texts_of(places + WINDOW - 1)]
        return within


def shingles(texts: Sequence[str]) -> Shingles:
    """Hash some texts; fastest with about a megabyte of them."""
    joined = SEPARATOR.join([*(text.replace(SEPARATOR, " ") for text in texts), ""])
    folded = unicodedata.normalize("NFKC", joined).casefold()
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), np.uint32)
    kind = _kinds()[codes]
    end = kind == END
    alnum = (kind == LETTER) | (kind == DIGIT)
    follows = np.append(alnum[1:], False)
    lines = np.flatnonzero(end | (kind == LINE))
    dense = codes >= DENSE
    unspaced = dense | np.append(False, dense[:-1])[: len(dense)]
    sentences = np.flatnonzero(end | (kind == LINE) | ((kind == STOP) & (~follows | unspaced)))
    texts_end = np.flatnonzero(end)
    values = _mixed(codes)
    weights = np.where(dense, WEIGHT, 1) if dense.any() else None

    letters = _Stream(values, (kind == LETTER) | end, weights)
    with_digits = _Stream(values, alnum | end, weights)
    with_marks = _Stream(values, (kind != SPACE) & (kind != LINE), weights)
    return Shingles(
        windows=letters.windows(),
        ends=letters.offsets[texts_end],
        sentences=letters.spans(sentences, texts_end),
        lines=with_digits.spans(lines, texts_end),
        wholes=with_digits.spans(texts_end, texts_end),
        exact=with_marks.spans(texts_end, texts_end),
    )


class _Stream:
    """Some of the characters in a row, with the prefix sums of their hashes."""

    def __init__(self, values: Hashes, kept: NDArray[np.bool_], weights: Places | None) -> None:
        chosen = values[kept]
        power, _ = _powers(len(values))
        self.sums = np.zeros(len(chosen) + 1, np.uint64)
        np.cumsum(chosen * power[: len(chosen)], out=self.sums[1:])
        self.offsets = np.zeros(len(kept) + 1, np.int64)
        """How many are kept before each character."""
        np.cumsum(kept, out=self.offsets[1:])
        self.lengths = self.offsets if weights is None else np.append(0, np.cumsum(kept * weights))

    def windows(self) -> Hashes:
        count = max(0, len(self.sums) - WINDOW)
        _, inverse = _powers(len(self.sums))
        return (self.sums[WINDOW:] - self.sums[:count]) * inverse[:count]

    def spans(self, ends: Places, texts_end: Places) -> Spans:
        """The pieces that end at these characters; the text's own end belongs to none."""
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        first, last = self.offsets[starts], self.offsets[ends]
        _, inverse = _powers(len(self.sums))
        hashes = (self.sums[last] - self.sums[first]) * inverse[first]
        texts = np.searchsorted(texts_end, ends, side="left").astype(np.int64)
        return Spans(texts, hashes, self.lengths[ends] - self.lengths[starts])


def _mixed(codes: NDArray[np.uint32]) -> Hashes:
    """Code points as numbers whose bits all matter."""
    spread = (codes.astype(np.uint64) + np.uint64(1)) * MIX
    return spread ^ (spread >> SHIFT)


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """What each code point is."""
    table = np.zeros(0x110000, np.uint8)
    for code in range(0x110000):
        character = chr(code)
        if character.isalpha():
            table[code] = LETTER
        elif character.isnumeric():
            table[code] = DIGIT
        elif character.isspace():
            table[code] = SPACE
    for characters, kind in ((STOPS, STOP), ("\n\r\x0b\x0c\x85\u2028\u2029", LINE), (SEPARATOR, END)):
        table[[ord(character) for character in characters]] = kind
    return table


def _powers(length: int) -> tuple[Hashes, Hashes]:
    """The powers of the base from 0, and their inverses, at least `length` of each."""
    return _power_table(1 << max(20, length.bit_length()))


@lru_cache(maxsize=2)
def _power_table(length: int) -> tuple[Hashes, Hashes]:
    found = []
    for base in (BASE, pow(BASE, -1, 1 << 64)):
        powers = np.full(length, base, np.uint64)
        powers[0] = 1
        found.append(np.multiply.accumulate(powers))
    return found[0], found[1]
