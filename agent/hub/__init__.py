"""Data sets and models by name: a directory on disk as it is, else a verified snapshot from the Hugging Face hub.

A download grows in `datasets/.partial/` or `models/.partial/` and is renamed into place only when every file has been
verified, so that whatever bears the final name is complete: there is no half data set to mistake for a whole one. After
an interruption the next call keeps the files that were finished (within one call, huggingface_hub itself resumes a file
whose connection broke). It checks no hash, so that is done here: sizes, sha256 of LFS files, git ids of the others.
"""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec

from agent.errors import MachineError, UsageError
from agent.hub.client import WORDS, Kind, Request, Say, amount, listing, patiently, plain_errors, transfer
from agent.hub.verify import HubFile, Verified, described, discard, pardon, shortened, verify

__all__ = ["RECORD", "Fetched", "Kind", "Record", "Say", "fetch", "find", "require_name"]

RECORD = ".ftloop.json"
# What is taken: weights only as safetensors, because pickles (.bin, .pth) and Python files are code.
_TAKEN: dict[Kind, tuple[str, ...]] = {
    "dataset": ("*.json", "*.jsonl", "*.csv", "*.parquet", "*.md", "LICENSE*"),
    "model": ("*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt", "*.md", "LICENSE*"),
}
# A model's subdirectories repeat its weights in other formats; hidden names are ours and huggingface_hub's.
_LEFT: dict[Kind, tuple[str, ...]] = {
    "dataset": (".*", "*/.*"),
    "model": (".*", "*/*", "consolidated*.safetensors"),
}
# One file of each group is needed.
_NEEDED: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "dataset": (("*.json", "*.jsonl", "*.csv", "*.parquet"),),
    "model": (("config.json",), ("*.safetensors",)),
}
_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?!.*(?:\.\.|--)){_WORD}(?:/{_WORD})?")


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """Where a data set or model lies, and how it came there.

    Attributes:
        revision: The hub's commit, where ftloop downloaded the directory, now or earlier.
        source: "path" (the name is a directory), "disk" (found in the workspace) or "hub" (downloaded by this call).
    """

    path: Path
    revision: str | None
    source: Literal["disk", "hub", "path"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What `.ftloop.json` says of a downloaded directory; every file has the sha256 of the bytes on disk."""

    name: str
    revision: str
    files: tuple[HubFile, ...]


def fetch(kind: Kind, name: str, root: Path, say: Say) -> Fetched:
    """Find a data set or model, downloading it into the workspace `root` where it is not on disk.

    Args:
        kind: What to look for; decides the directory under `root`, and which files are taken.
        name: A directory, `owner/name` or `name`.
        root: The workspace.
        say: Told how a download goes on, by the calling thread.

    Raises:
        UsageError: There is no such data set or model, or nothing in it can be used.
        MachineError: The hub is out of reach, or keeps sending wrong bytes.
    """
    found = find(kind, name, root)
    if found is not None:
        return found
    require_name(kind, name)
    target = _place(kind, name, root)
    work = root / f"{kind}s" / ".partial" / name.replace("/", "--")
    with plain_errors(kind, name, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work / "lock", name, say):
            # Another process may have fetched it while this one waited.
            return find(kind, name, root) or _download(kind, name, work / "files", target, say)


def require_name(kind: Kind, name: str) -> None:
    """UsageError for what no data set or model of the hub can be called, such as a path."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--{kind} {name!r} is neither a directory nor a name on the Hugging Face hub",
            "give an existing directory, or a name of the form owner/name",
        )


def find(kind: Kind, name: str, root: Path) -> Fetched | None:
    """The directory that `name` stands for, without asking the hub; None where there is none."""
    path = Path(name).expanduser() if name.startswith("~/") else Path(name)
    try:
        if name.strip() and path.is_dir():
            return Fetched(path=path.resolve(), revision=_recorded_revision(path), source="path")
        if name.strip() and path.is_file():
            raise UsageError(
                f"--{kind} {name!r} is a file", f"give the directory that holds it: --{kind} {path.parent}"
            )
    except (OSError, ValueError):
        return None  # no path can look like this
    place = _place(kind, name, root)
    if _NAME.fullmatch(name) and place.is_dir():
        return Fetched(path=place.resolve(), revision=_recorded_revision(place), source="disk")
    return None


def _place(kind: Kind, name: str, root: Path) -> Path:
    return root / f"{kind}s" / name


def _recorded_revision(directory: Path) -> str | None:
    try:
        return msgspec.json.decode((directory / RECORD).read_bytes(), type=Record).revision
    except (OSError, msgspec.DecodeError):
        return None


def _download(kind: Kind, name: str, staging: Path, target: Path, say: Say) -> Fetched:
    """Download into `staging`, verify, fetch damaged files once more, and rename it to `target`."""
    revision, listed = patiently(lambda: listing(kind, name), say)
    files = _usable(kind, name, listed)
    staging.mkdir(exist_ok=True)
    for orphan in staging.glob(".cache/huggingface/download/**/*.incomplete"):
        orphan.unlink()  # left by a killed process; huggingface_hub 2.4.0 never uses it again
    _check_space(staging, files)
    request = Request(kind=kind, name=name, revision=revision, taken=_TAKEN[kind], left=_LEFT[kind])
    total = sum(file.size for file in files)
    say(f"downloading the {WORDS[kind]} {name}: {amount(total)} in {len(files)} file{'s' * (len(files) != 1)}")

    def attempt() -> list[Verified]:
        patiently(lambda: transfer(request, staging, total, say), say)
        return [verify(staging, file) for file in files]

    verified = attempt()
    if damaged := [one for one in verified if one.problem]:
        say(f"{name}: {described(damaged)}; fetching again")
        discard(staging, damaged)
        verified = pardon(attempt(), damaged, say)
    if damaged := [one for one in verified if one.problem]:
        discard(staging, damaged)
        raise MachineError(
            f"the {WORDS[kind]} {name} arrived damaged twice: {described(damaged)}",
            "check the network (a proxy?) and HF_ENDPOINT, then run the same command; good files are kept",
        )
    _settle(staging, target, Record(name=name, revision=revision, files=tuple(one.hashed for one in verified)))
    say(f"downloaded {name} at revision {revision[:12]} into {target}")
    return Fetched(path=target.resolve(), revision=revision, source="hub")


def _usable(kind: Kind, name: str, listed: Sequence[HubFile]) -> list[HubFile]:
    """The files to take; UsageError where they would be of no use."""
    taken = [file for file in listed if _matches(file, _TAKEN[kind]) and not _matches(file, _LEFT[kind])]
    for group in _NEEDED[kind]:
        if not any(_matches(file, group) for file in taken):
            raise UsageError(
                f"the {WORDS[kind]} {name} on the hub has no {' or '.join(group)}; "
                f"it has {shortened([file.path for file in listed]) or 'no files at all'}",
                f"choose another one, or convert it and give its directory: --{kind} <directory>",
            )
    return taken


def _matches(file: HubFile, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(file.path, pattern) for pattern in patterns)


def _settle(staging: Path, target: Path, record: Record) -> None:
    """Leave the recorded files and their record, nothing else, and give the directory its final name."""
    shutil.rmtree(staging / ".cache")
    wanted = {staging / file.path for file in record.files}
    for path in [path for path in staging.rglob("*") if path.is_file() and path not in wanted]:
        path.unlink()  # of a revision that the hub has replaced since an earlier attempt
    (staging / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1))
    staging.rename(target)


def _check_space(staging: Path, files: Sequence[HubFile]) -> None:
    missing = sum(file.size for file in files if not (staging / file.path).is_file())
    free = shutil.disk_usage(staging).free
    if missing > free:
        raise MachineError(
            f"the download needs {amount(missing)} and the disk of {staging} has {amount(free)} left",
            "free some disk space, or set FT_FILE_PATH to a directory on a larger disk",
        )


@contextmanager
def _locked(path: Path, name: str, say: Say) -> Iterator[None]:
    """Only one process at a time downloads a name; the lock ends with its process."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is downloading {name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
