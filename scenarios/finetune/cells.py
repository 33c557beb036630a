"""What a cell of a data set says: its text, how long that is in tokens, and in what script it is written.

The host has no tokenizer. A token of a large vocabulary is close to four bytes of UTF-8 in most scripts, so that is
what lengths are counted in; `bytes_per_token` says better where the model's `tokenizer.json` is at hand.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes of an average token, where nothing better is known."""
LONGEST_TOKEN = 64  # characters of the byte alphabet; longer ones (runs of blanks) are rare
DEEPEST = 8  # nested lists and objects that hold text
SCRIPT_SAMPLE = 2_000  # characters of a text that decide about its script
_CONTENT = ("content", "value")  # of a message

# First code point -> script, up to the next; "" is shared by all scripts. Unicode blocks, coarse on purpose.
_BLOCKS: tuple[tuple[int, str], ...] = (
    (0x0000, "Latin"),
    (0x02B0, ""),
    (0x0370, "Greek"),
    (0x0400, "Cyrillic"),
    (0x0530, "Armenian"),
    (0x0590, "Hebrew"),
    (0x0600, "Arabic"),
    (0x0780, "other"),
    (0x0900, "Devanagari"),
    (0x0980, "Indic"),
    (0x0E00, "Thai"),
    (0x0E80, "other"),
    (0x10A0, "Georgian"),
    (0x1100, "Hangul"),
    (0x1200, "other"),
    (0x1E00, "Latin"),
    (0x1F00, "Greek"),
    (0x2000, ""),
    (0x2C00, "other"),
    (0x2E80, "Han"),
    (0x3000, ""),
    (0x3040, "Kana"),
    (0x3100, "Han"),
    (0x3130, "Hangul"),
    (0x3190, "Han"),
    (0xA000, "other"),
    (0xAC00, "Hangul"),
    (0xD800, ""),
    (0xF900, "Han"),
    (0xFB00, "other"),
    (0xFE00, ""),
    (0x10000, "other"),
    (0x1D000, ""),
    (0x20000, "Han"),
    (0x32000, ""),
)
_STARTS = [start for start, _ in _BLOCKS]


def text(cell: object) -> str:
    """A cell as text: numbers as they are written, what the messages of a conversation say, "" for anything else."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool) or cell is None or cell != cell:
        return ""
    return str(cell) if isinstance(cell, int | float) else "\n".join(_strings(cell, DEEPEST))


def normalised(said: str) -> str:
    """Text without what makes no difference to a reader: case, width, and how much blank there is."""
    return " ".join((said if said.isascii() else unicodedata.normalize("NFKC", said)).casefold().split())


def digest(said: str) -> int:
    """64 bits that stand for a text; of a million texts, two share them once in 30 million times."""
    return int.from_bytes(hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def tokens(said: str, bytes_per_token: float = BYTES_PER_TOKEN) -> int:
    """About how many tokens a text has; 0 for an empty one only."""
    size = len(said) if said.isascii() else len(said.encode("utf-8", "surrogatepass"))
    return math.ceil(size / max(bytes_per_token, 0.25))


def script(said: str) -> str:
    """The script that most letters of a text are in: "Latin", "Han", "Kana", ...; "none" without letters.

    Text with any noticeable share of Kana is Japanese, however many Han characters are in it.
    """
    sample = said[:SCRIPT_SAMPLE]
    if sample.isascii():
        return "Latin" if any(map(str.isalpha, sample)) else "none"
    counts = Counter(_script_of(ord(character)) for character in sample if character.isalpha())
    counts.pop("", None)
    if not counts:
        return "none"
    if counts["Kana"] * 10 > counts["Han"] + counts["Kana"] and counts["Kana"] * 3 > counts["Latin"]:
        return "Kana"
    return max(counts, key=lambda name: (counts[name], name))


def bytes_per_token(tokenizer: Path, texts: Iterable[str]) -> float:
    """UTF-8 bytes of an average token of these texts, by the vocabulary of a model's `tokenizer.json`.

    The longest entry that matches is taken at each place, which gives a few more tokens than the tokenizer's own
    merges, or a few less. `BYTES_PER_TOKEN` where the file cannot be read or the texts are empty.
    """
    try:
        vocabulary = _vocabulary(msgspec.json.decode(tokenizer.read_bytes()))
    except (OSError, msgspec.MsgspecError, RecursionError):
        return BYTES_PER_TOKEN
    if not vocabulary:
        return BYTES_PER_TOKEN
    byte_level, marked = (any(entry.startswith(blank) for entry in vocabulary) for blank in "Ġ▁")
    longest = max(map(len, vocabulary))
    size = count = 0
    for said in texts:
        raw = said.encode("utf-8", "replace")
        size += len(raw)
        if byte_level:
            said = "".join(map(_BYTE_ALPHABET.__getitem__, raw))
        elif marked:
            said = said.replace(" ", "▁")
        count += _longest_matches(said, vocabulary, longest)
    return size / count if count else BYTES_PER_TOKEN


def _strings(cell: object, depth: int) -> list[str]:
    if isinstance(cell, str):
        return [cell]
    if depth and isinstance(cell, dict):
        said = [cell[key] for key in _CONTENT if key in cell] or list(cell.values())
        return [found for value in said for found in _strings(value, depth - 1)]
    if depth and isinstance(cell, list | tuple):
        return [found for value in cell for found in _strings(value, depth - 1)]
    return []


def _script_of(point: int) -> str:
    return _BLOCKS[bisect.bisect_right(_STARTS, point) - 1][1]


def _byte_alphabet() -> Sequence[str]:
    """The character that stands for each byte in the vocabularies of byte-level BPE (GPT-2's `bytes_to_unicode`)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    moved = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + moved.index(byte)) for byte in range(256)]


_BYTE_ALPHABET = _byte_alphabet()


def _vocabulary(content: Any) -> set[str]:
    model = content.get("model") if isinstance(content, dict) else None
    entries = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(entries, list):  # Unigram: [["piece", score], ...]
        entries = [entry[0] for entry in entries if isinstance(entry, list) and entry]
    return {entry for entry in entries or () if isinstance(entry, str) and len(entry) <= LONGEST_TOKEN}


def _longest_matches(said: str, vocabulary: set[str], longest: int) -> int:
    """How many tokens a text has; what no entry matches counts as one a character."""
    count = place = 0
    while place < len(said):
        end = min(len(said), place + longest)
        while end > place + 1 and said[place:end] not in vocabulary:
            end -= 1
        count, place = count + 1, end
    return count
