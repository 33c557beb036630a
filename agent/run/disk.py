"""How much a job has written where it may write, counted while it runs: bind mounts have no quota."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from agent.run import Job

PAUSE = 3.0
"""Seconds between two counts."""
SLICE = 0.05
"""Seconds that one look may take; a count of many files goes on in the next one, so that no deadline waits for it."""
DEEPEST = 64
"""Nested directories that a job may leave; deeper ones overflow paths, and the stack of whoever deletes them."""
FULL = 16 << 20
_ENTRY = 4096
"""What the smallest entry counts for: empty files use up a disk too."""


class _TooDeepError(Exception):
    """Carries the highest directory, below the counted one, that holds too deep a nest."""


class Meter:
    """Counts what one job writes.

    A job that moves directories about while they are counted can only falsify its own count.

    Args:
        job: Its writable mounts and its log are counted.
        limit: Bytes that it may write; None for any number.
    """

    def __init__(self, job: Job, limit: int | None) -> None:
        self._limit = limit
        self._paths = _outermost([*(mount.path for mount in job.mounts if mount.writable), job.log])
        self._due = time.monotonic() + PAUSE
        self._count: Iterator[int] | None = None
        self._total = 0

    def look(self) -> str | None:
        """Why the job must be stopped, as far as this look has come; counts for `SLICE` seconds at most."""
        started = time.monotonic()
        if self._count is None:
            if started < self._due:
                return None
            self._count, self._total = _sizes(self._paths), 0
        try:
            for size in self._count:
                self._total += size
                if reason := self._over():
                    return reason
                if time.monotonic() - started > SLICE:
                    return None
        except _TooDeepError:
            return _too_deep()
        self._count, self._due = None, time.monotonic() + PAUSE
        return None

    def last(self) -> str | None:
        """What a complete count says once the job has ended; deletes what is nested too deep."""
        reason = None
        while True:
            try:
                self._total = sum(_sizes(self._paths))
            except _TooDeepError as nest:
                remove(nest.args[0])
                reason = _too_deep()
            else:
                return reason or self._over()

    def _over(self) -> str | None:
        if self._limit is None or self._total <= self._limit:
            return None
        return f"it wrote more than {self._limit / 1e9:.3g} GB (FT_TRIAL_DISK)"


def full(path: str) -> bool:
    """Whether next to nothing can be written where `path` lies."""
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < FULL or (found.f_files > 0 and found.f_favail == 0)


def remove(path: str) -> None:
    """Delete a directory however deep it is; nothing else may be at work in it.

    Every directory is first moved beside `path`, so that no path grows and nothing recurses.
    """
    parent, names = os.path.dirname(path), count()  # noqa: PTH120 - plain text all along
    pending = [path]
    while pending:
        directory = pending.pop()
        os.chmod(directory, 0o700)  # noqa: PTH101
        with os.scandir(directory) as entries:
            for entry in list(entries):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)  # noqa: PTH108
                    continue
                pending.append(f"{parent}/.removed-{os.getpid()}-{next(names)}")
                os.rename(entry.path, pending[-1])  # noqa: PTH104
        os.rmdir(directory)  # noqa: PTH106


def _outermost(paths: Sequence[str]) -> list[str]:
    """Without those that lie inside another one, which would be counted twice."""
    found = [Path(os.path.normpath(path)) for path in paths]
    return [str(path) for path in dict.fromkeys(found) if not any(other in path.parents for other in found)]


def _sizes(paths: Sequence[str]) -> Iterator[int]:
    """What each entry at and below the paths takes on disk; links are not followed."""
    for path in paths:
        try:
            yield max(_ENTRY, os.lstat(path).st_blocks * 512)
        except OSError:
            continue
        pending = [(path, 0)]
        while pending:
            directory, depth = pending.pop()
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            if depth >= DEEPEST:
                                raise _TooDeepError(_below(path, directory))
                            pending.append((entry.path, depth + 1))
                        yield _size(entry)
            except OSError as error:  # gone, no directory, or not ours to read
                if error.errno == errno.ENAMETOOLONG:
                    raise _TooDeepError(_below(path, directory)) from None


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return max(_ENTRY, entry.stat(follow_symlinks=False).st_blocks * 512)
    except OSError as error:
        return 0 if error.errno == errno.ENOENT else _ENTRY


def _below(root: str, path: str) -> str:
    """The entry directly below `root` that leads to `path`."""
    return f"{root}/{path.removeprefix(root).lstrip('/').split('/')[0]}"


def _too_deep() -> str:
    return f"it nested directories more than {DEEPEST} deep"
