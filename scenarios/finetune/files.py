"""Files that a crash leaves whole or not at all, and the mark of those that ftloop made itself."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from agent.errors import UsageError

MARKER = "made_by_ftloop.json"
"""Lies in a demo's directories. A directory without it is the user's: never changed, and never taken for a demo's."""


def scratch(path: Path) -> Path:
    """A new hidden name beside `path`, which no other call uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Open a text file for writing that takes its name only when it is complete and on the disk."""
    partial = scratch(path)
    try:
        with partial.open("x", encoding="utf-8", errors="replace") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on the disk."""
    # A job may have left a link or a pipe here: neither is followed nor waited for.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        if path.is_symlink():
            return
        raise
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """The same for a directory with all below it; its own name is in the directory above."""
    for path in [*directory.rglob("*"), directory]:
        sync(path)


def install(draft: Path, target: Path, current: Callable[[], bool]) -> None:
    """Move a finished directory to its place; one that another call put there meanwhile stays, if it is `current`.

    Raises:
        UsageError: Something that ftloop did not make is there.
    """
    try:
        sync_tree(draft)
        while not _moved(draft, target) and not current():
            require_ours(target)
            outdated = scratch(target)
            with suppress(FileNotFoundError):  # another call moved it away first
                target.rename(outdated)
                shutil.rmtree(outdated)
        sync(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _moved(draft: Path, target: Path) -> bool:
    """Whether the name was free; an empty directory does not stand in the way."""
    try:
        draft.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def require_ours(directory: Path) -> None:
    """UsageError where there is anything but what ftloop made, an empty directory, or nothing."""
    try:
        names = {path.name for path in directory.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        names = {directory.name}
    if names and MARKER not in names:
        raise UsageError(
            f"{directory} is where the demo belongs, but something else is there",
            "move it away; what is yours can be used from anywhere by its own path",
        )
