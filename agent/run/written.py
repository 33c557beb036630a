"""Reads what a job wrote as if the job were hostile.

A job may leave links to the host's files, pipes that never answer, or endless files where results are expected. Only
regular files below a directory of ours are opened, and no link is followed on the way to them, not even one that
replaces a directory while we look.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read(root: Path, name: str, limit: int) -> bytes:
    """The file `name` below `root`, a directory that no job can replace.

    Raises:
        OSError: missing, not a regular file, reached through a link, or larger than `limit` bytes.
    """
    with os.fdopen(_open(root, name), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", name)
    return content


def read_end(root: Path, name: str, size: int) -> bytes:
    """At most the last `size` bytes of the file `name` below `root`; OSError as for `read`."""
    with os.fdopen(_open(root, name), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read(size)


def strange(directory: Path) -> str | None:
    """The first thing at or below `directory` that is neither a directory nor a regular file; None if all is plain.

    For a job that has ended: what is plain then stays so.
    """
    if not os.path.lexists(directory):
        return None
    if (kind := _strangeness(directory.lstat().st_mode)) or not directory.is_dir():
        return f"{directory.name} is {kind or 'no directory'}"
    pending = [directory]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                if kind := _strangeness(mode):
                    return f"{Path(entry.path).relative_to(directory.parent)} is {kind}"
                if stat.S_ISDIR(mode):
                    pending.append(Path(entry.path))
    return None


def _strangeness(mode: int) -> str | None:
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return "a symbolic link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"


def _open(root: Path, name: str) -> int:
    """A descriptor of a regular file; every component is opened by itself, relative to the one before."""
    *directories, last = name.split("/")
    if not {*directories, last}.isdisjoint({"", ".", ".."}):
        raise OSError(errno.EINVAL, "not a plain relative path", name)
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for directory in directories:
            inner = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = inner
        # O_NONBLOCK: opening a pipe would wait for its writer.
        file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file", name)
    return file
