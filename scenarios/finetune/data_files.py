"""Which files below a directory are the training data: the train split, one configuration, each table once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.errors import UsageError
from scenarios.finetune.rows import SUFFIXES, suffix

TRAIN = {"train", "training"}
HELD_OUT = {"test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "heldout", "holdout"}
NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
PREFERRED = ("main", "default", "all")  # of several configurations that overlap


def choose(root: Path) -> tuple[list[Path], list[str]]:
    """The training files below a directory, and lines about those left out."""
    inside = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(root).parts)
    )
    if not inside:
        raise UsageError(f"data set {root} is an empty directory", f"put data files into it: {', '.join(SUFFIXES)}")
    data = [path for path in inside if suffix(path) in SUFFIXES and path.name not in NO_DATA]
    if not data:
        names = ", ".join(str(path.relative_to(root)) for path in inside[:5])
        raise UsageError(f"data set {root} holds no data files, only {names}", f"supported: {', '.join(SUFFIXES)}")
    split = {path: _split(path.relative_to(root)) for path in data}
    wanted = "train" if "train" in split.values() else "unnamed"
    chosen = [path for path in data if split[path] == wanted]
    if not chosen:
        names = ", ".join(str(path.relative_to(root)) for path in data[:5])
        raise UsageError(f"data set {root} has no training split, only {names}", "name the file to train on itself")
    left_out = [f"{path.relative_to(root)}: not the training split" for path in data if split[path] != wanted]
    chosen, twice = _once(chosen)
    chosen, overlapping = _configuration(root, chosen)
    return chosen, left_out + [f"{path.relative_to(root)}: {why}" for path, why in twice + overlapping]


def _split(relative: Path) -> str:
    """ "train", "held out", or "unnamed"; the file's name says more than its directories."""
    for part in (relative.name, *reversed(relative.parent.parts)):
        words = set(part.lower().replace("-", " ").replace("_", " ").replace(".", " ").split())
        if words & TRAIN:
            return "train"
        if words & HELD_OUT:
            return "held out"
    return "unnamed"


def _once(files: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Of files that differ by their suffix alone, the one that types its columns best (Parquet, JSON, then CSV)."""
    best: dict[Path, Path] = {}
    for path in files:
        stem = path.with_name(path.name.removesuffix(suffix(path)))
        rival = best.get(stem)
        if rival is None or SUFFIXES.index(suffix(path)) < SUFFIXES.index(suffix(rival)):
            best[stem] = path
    kept = set(best.values())
    return sorted(kept), [(path, "the same data in another format") for path in files if path not in kept]


def _configuration(root: Path, files: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Of a hub data set's configurations, `main` where there is one (it overlaps with the others), else all."""
    configurations: dict[str, list[Path]] = {}
    for path in files:
        parts = [part for part in path.relative_to(root).parts[:-1] if part != "data" and part.lower() not in TRAIN]
        configurations.setdefault(parts[0] if parts else "", []).append(path)
    for name in PREFERRED:
        if name in configurations and len(configurations) > 1:
            rest = [path for path in files if path not in configurations[name]]
            return configurations[name], [(path, f"another configuration than {name}") for path in rest]
    return list(files), []
