"""Removes directories below a root, reached from it by descriptors and never through a link.

A job may have laid links, or lay them while we look: what they point to is not ours.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that could go: what became of it, its size in bytes, and why."""

    what: str
    fate: Literal["removed", "would go", "kept", "failed"]
    why: str
    bytes: int = 0


class InUse(Exception):
    """Another process holds it; the text says which, as far as that is known."""


class Remover:
    """Removes directories below `root` (itself resolved), or with `dry_run` says that it would."""

    def __init__(self, root: Path, dry_run: bool) -> None:
        self.root = root
        self._dry_run = dry_run

    def remove(self, place: str, why: str, shown: Path | None = None) -> Item:
        """Remove the directory `place`, relative to the root; a link in its path is a failure, not a way."""
        what = str(shown or place)
        try:
            with opened(self.root, str(Path(place).parent)) as above:
                size = _size(Path(place).name, above)
                if not self._dry_run:
                    shutil.rmtree(Path(place).name, dir_fd=above)
        except OSError as error:
            return Item(what=what, fate="failed", why=error.strerror or str(error))
        return Item(what=what, fate="would go" if self._dry_run else "removed", why=why, bytes=size)

    def remove_file(self, place: str, why: str, older: float) -> Item | None:
        """Remove the file `place` where it is older than so many seconds; None where it is not, or no file is there."""
        name = Path(place).name
        try:
            with opened(self.root, str(Path(place).parent)) as above:
                found = os.stat(name, dir_fd=above, follow_symlinks=False)
                if not stat.S_ISREG(found.st_mode) or time.time() - found.st_mtime < older:
                    return None
                if not self._dry_run:
                    os.unlink(name, dir_fd=above)
        except FileNotFoundError:
            return None
        except OSError as error:
            return Item(what=place, fate="failed", why=error.strerror or str(error))
        return Item(what=place, fate="would go" if self._dry_run else "removed", why=why, bytes=found.st_size)

    def there(self, place: str) -> bool:
        """Whether `place` is a directory, without a link on the way."""
        return Path(place).name in directories(self.root, str(Path(place).parent))

    def newest(self, place: str) -> float:
        """When anything in the directory changed last; now, where that cannot be seen."""
        try:
            with opened(self.root, str(Path(place).parent)) as above:
                return max(found.st_mtime for found in _stats(Path(place).name, above))
        except OSError:
            return time.time()


@contextmanager
def opened(root: Path, place: str) -> Iterator[int]:
    """A descriptor of the directory `place` below `root`; OSError where a component is a link or is not there."""
    descriptor = os.open(root, _DIRECTORY)
    try:
        for name in Path(place).parts:
            below = os.open(name, _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def held(lock: Path, root: Path) -> Iterator[None]:
    """Hold a lock file that is there already; InUse where another process does, OSError where it is no such file."""
    with opened(root, str(lock.parent.relative_to(root))) as directory:
        descriptor = os.open(lock.name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    with os.fdopen(descriptor) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"process {file.read(20).strip() or '?'}") from None
        yield


def directories(root: Path, place: str, pattern: str = ".*") -> list[str]:
    """Names of the directories in `place` that match; none where it is not there, or behind a link."""
    try:
        with opened(root, place) as descriptor, os.scandir(descriptor) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and re.fullmatch(pattern, entry.name)
            )
    except OSError:
        return []


def files(root: Path, place: str, pattern: str) -> list[str]:
    """Names of the files in `place` that match; none where it is not there, or behind a link."""
    try:
        with opened(root, place) as descriptor, os.scandir(descriptor) as entries:
            return sorted(entry.name for entry in entries if re.fullmatch(pattern, entry.name))
    except OSError:
        return []


def _size(name: str, above: int) -> int:
    """Bytes that removing a directory frees; a file that has another name elsewhere frees nothing."""
    return sum(found.st_size for found in _stats(name, above) if stat.S_ISREG(found.st_mode) and found.st_nlink == 1)


def _stats(name: str, above: int) -> Iterator[os.stat_result]:
    """Of the directory and of all that lies below it."""
    for _, _, names, descriptor in os.fwalk(name, dir_fd=above, follow_symlinks=False):
        yield os.fstat(descriptor)
        for each in names:
            with suppress(FileNotFoundError):
                yield os.stat(each, dir_fd=descriptor, follow_symlinks=False)
