"""The names of a sweep's directories: `{purpose}/{Model}/{Task}_{Method}_{DataType}_{LR}/{time}`.

They are for people. What an experiment was stands in its experiment_config.yaml, whatever its directory is called.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

from agent.errors import UsageError

METHODS = ("fo_full", "fo_lora")
LATER = ("zo",)
"""Methods that the names know and that cannot be trained yet."""
UNCATEGORIZED = "uncategorized"
TIME = "%Y%m%d_%H%M%S"
_RATE = re.compile(r"_(\d+(?:p\d+)?)_(\d+)$")
_PLAIN = re.compile(r"[^\W_][\w.+-]*")
_LONGEST = 100


def rate(learning_rate: float) -> str:
    """A learning rate as the names write it: 1e-7 is `1_7`, 2.5e-7 is `2p5_7`."""
    _, digits, exponent = Decimal(repr(learning_rate)).normalize().as_tuple()
    assert isinstance(exponent, int)
    first, rest = str(digits[0]), "".join(map(str, digits[1:]))
    power = exponent + len(digits) - 1
    mantissa = f"{first}p{rest}" if rest else first
    return f"{mantissa}_{-power}" if power <= 0 else f"{mantissa}_m{power}"


def experiment(task: str, method: str, data_type: str, learning_rate: float) -> str:
    """`Copa_fo_lora_copa_mezo_v1_1_6`."""
    return f"{task}_{method}_{data_type}_{rate(learning_rate)}"


def readings(name: str) -> list[tuple[str, str, str, str]]:
    """Every way to read a name as task, method, data type and learning rate; the method is what it is taken apart at.

    More than one: the name is ambiguous, as underscores may be anywhere in it. None: it is no such name.
    """
    if (found := _RATE.search(name)) is None:
        return []
    front, written = name[: found.start()], found[0][1:]
    cuts = [
        (front[: match.start()], method, front[match.end() :], written)
        for method in (*METHODS, *LATER)
        for match in re.finditer(f"_{method}_", front)
    ]
    return sorted((cut for cut in cuts if cut[0] and cut[2]), key=lambda cut: len(cut[0]))


def data_type(path: str) -> str:
    """What a data path is called in names: `original`, an experiment's id, else the last name of the path.

    `Data_v2/synthetic/{purpose}/{id}/{Dataset}` has an id; `Data_v2/original/{Dataset}` is original.
    """
    parts = [part for part in Path(path).parts if part not in ("/", ".", "..")]
    for index in reversed(range(len(parts))):
        if parts[index] == "synthetic" and index + 2 < len(parts):
            return _tidy(parts[index + 2])
        if parts[index] == "original" and index + 1 < len(parts):
            return "original"
    return _tidy(Path(parts[-1]).stem if parts else "data")


def model_directory(model: str) -> Path:
    """Where a model's experiments lie: a hub name keeps its slash, a path is called by its last part."""
    path = Path(model).expanduser()
    if path.is_absolute() or model.startswith(("~", ".")) or len(path.parts) > 2:
        return Path(_tidy(path.resolve().name))
    return Path(*map(_tidy, path.parts))


def plain(value: str, key: str) -> str:
    """A name that is one directory, or a part of one; UsageError for anything else."""
    if len(value) > _LONGEST or not _PLAIN.fullmatch(value):
        raise UsageError(
            f"{key}: {value[:_LONGEST]!r} cannot be a directory's name",
            "letters, digits, _, -, + and dots, beginning with a letter or digit",
        )
    return value


def _tidy(part: str) -> str:
    """One part of a path as a directory's name that nobody has to quote."""
    return re.sub(r"[^\w.+-]", "-", part).lstrip(".-_")[:_LONGEST] or "data"
