"""Finds questions of a sealed test split in what a study said and wrote: for any test that has both at hand.

    leaks = find_leaks(texts_below(study_directory) | {"terminal": output}, sealed_questions, shared=search_questions)

What is compared is letters and digits alone, so that no re-spacing, quoting, escaping or cutting of lines hides one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

PIECE = 60
"""Letters and digits of a longer question that give it away."""
TEXTS = (".log", ".jsonl", ".json", ".yaml", ".yml", ".md", ".txt", ".py", ".csv")


def find_leaks(texts: Mapping[str, str], sealed: Iterable[str], shared: Iterable[str] = ()) -> list[str]:
    """Which texts hold a sealed question, or a piece of `PIECE` characters of one: "prompt 3: <question>".

    Args:
        texts: By name. sealed: The questions.
        shared: What may be told, as the questions of the search split: pieces that occur in it give nothing away.
    """
    allowed = "\0".join(map(_bare, shared))
    wanted = {question: [piece for piece in _pieces(_bare(question)) if piece not in allowed] for question in sealed}
    leaks = []
    for name, text in texts.items():
        read = "\0".join({_bare(text), _bare(_unescaped(text))})
        found = (question for question, pieces in wanted.items() if any(piece in read for piece in pieces))
        leaks += [f"{name}: {question[:80]!r}" for question in found]
    return leaks


def texts_below(directory: Path, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """Every text file below a directory, by its path in it, without directories of these names."""
    out = set(leave_out)
    found = {}
    for file in sorted(directory.rglob("*")):
        inside = file.relative_to(directory)
        if file.suffix in TEXTS and file.is_file() and not out & set(inside.parts[:-1]):
            found[str(inside)] = file.read_text("utf-8", errors="replace")
    return found


def _bare(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _unescaped(text: str) -> str:
    """`text` with what JSON escapes, once or twice, written out."""
    for _ in range(2):
        text = re.sub(r"\\(?:u[0-9a-fA-F]{4}|[\"\\/bfnrt])", _character, text)
    return text


def _character(escape: re.Match[str]) -> str:
    return str(json.loads(f'"{escape[0]}"'))


def _pieces(bare: str) -> list[str]:
    """A short question whole; of a longer one, pieces that overlap by half, so that any long enough part holds one."""
    if len(bare) <= PIECE:
        return [bare] if bare else []
    step = PIECE // 2
    return [bare[start : start + PIECE] for start in (*range(0, len(bare) - PIECE, step), len(bare) - PIECE)]
