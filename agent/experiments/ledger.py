"""Which sweeps there are below a results' root, who works on them, and what of them is missing.

A sweep is known by what it trains (`key`) and when it began. Which of its cells are done is read from the cells'
own files, wherever below the root they lie now; all that a sweep has beside them is its lock and its copy of the data.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import msgspec

from agent.errors import StudyError, UsageError
from agent.experiments import cells

SWEEPS = ".sweeps"


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep that this process works on.

    Attributes:
        id: `{key}-{time}`. directory: Its own, for its data and lock.
        done: Cell number -> directory, of those that are done. others: Directory -> state, of the other attempts.
    """

    id: str
    directory: Path
    done: dict[int, Path]
    others: dict[Path, str]

    @property
    def continued(self) -> bool:
        """Whether an earlier call had begun it."""
        return bool(self.done or self.others)


@contextmanager
def held(root: Path, key: str, size: int, stamp: str, *, anew: bool = False) -> Iterator[Held]:
    """Hold the sweep with this key: the last one, where it lacks a cell, else a new one.

    Args:
        size: How many cells it has. stamp: The time, for a new one.
        anew: Begin a new one in any case.

    Raises:
        StudyError: Another process works on it.
    """
    directory = root / SWEEPS
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a+") as root_lock:
        fcntl.flock(root_lock, fcntl.LOCK_EX)  # for the moment that the choice takes
        found = None if anew else _unfinished(root, key, size)
        if found is None:
            own = cells.claim(directory, f"{key}-{stamp}")
            found = Held(id=own.name, directory=own, done={}, others={})
        lock = _lock(found)
    with lock:
        yield found


def _unfinished(root: Path, key: str, size: int) -> Held | None:
    """The last sweep with this key, where it lacks a cell; whoever holds it is found out by locking it."""
    earlier = [path for path in (root / SWEEPS).glob(f"{key}-*") if path.is_dir()]
    if not earlier:
        return None
    last = max(earlier, key=lambda path: (path.stat().st_ctime_ns, path.name))
    done: dict[int, Path] = {}
    others: dict[Path, str] = {}
    for path in cells.find(root):
        try:
            experiment = cells.read(path)
        except UsageError:
            continue  # another one's; `ftloop list` names it
        if experiment.sweep != last.name:
            continue
        status = cells.status(path)
        if status is not None and status.state == "done":
            done[experiment.cell] = path
        else:
            others[path] = status.now if status else "killed"
    found = Held(id=last.name, directory=last, done=done, others=others)
    if len(done) < size:
        return found
    return found if _busy(last) else None


def _busy(directory: Path) -> bool:
    with (directory / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock(found: Held) -> TextIO:
    """The open lock file of a sweep, with our pid in it; it is given back when it is closed, or we are dead."""
    file = (found.directory / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "?"
        file.close()
        raise StudyError(
            f"this sweep ({found.id}) is being worked on by process {holder}",
            "wait for it, or stop it with Ctrl-C; --anew begins a second one of the same",
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
