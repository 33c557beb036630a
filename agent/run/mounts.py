"""Who may read and write what a job is given; a root caller's jobs run as a user of their own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agent.errors import MachineError
from agent.run import Job


def hand_over(job: Job, uid: int, gid: int) -> None:
    """Give the job's writable mounts to its user, and see to it that the others can be read.

    Raises:
        MachineError: A file of a read-only mount cannot be read by that user.
    """
    for mount in job.mounts:
        if mount.writable and os.getuid() != uid:
            _give(Path(mount.path), uid, gid)
        elif not mount.writable and (closed := unreadable(mount.path, uid, gid)):
            raise MachineError(
                f"{closed} cannot be read by the user {uid} that jobs run as",
                f"let that user read it (chmod -R a+rX {mount.path}), or keep it elsewhere (FT_FILE_PATH)",
            )


def let_jobs_read() -> None:
    """See to it that what a root caller's process makes from now on can be read by the user that its jobs run as.

    Directories that are there already stay as closed as they are, and keep others out of all that lies below them: a
    container gets what is mounted by the engine, which they do not stop.
    """
    if os.getuid() == 0:
        os.umask(os.umask(0o077) & ~(stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH))


def unreadable(path: str, uid: int, gid: int) -> str | None:
    """The first thing at or below `path` that such a user may not read; links are not followed below it."""
    pending = [path]
    while pending:
        entry = pending.pop()
        try:
            status = os.stat(path) if entry == path else os.lstat(entry)  # noqa: PTH116 - many files, plain text
        except FileNotFoundError:
            continue  # the engine says it better
        if stat.S_ISLNK(status.st_mode):
            continue
        is_directory = stat.S_ISDIR(status.st_mode)
        wanted = stat.S_IROTH | stat.S_IXOTH if is_directory else stat.S_IROTH
        shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
        if (status.st_mode >> shift) & wanted != wanted:
            return entry
        if is_directory:
            with os.scandir(entry) as entries:
                pending += [below.path for below in entries]
    return None


def _give(path: Path, uid: int, gid: int) -> None:
    """Make the user the owner of all at and below `path`. By descriptors: another job may be moving links about."""
    os.chown(path, uid, gid, follow_symlinks=False)
    for _, directories, files, descriptor in os.fwalk(path, follow_symlinks=False):
        for name in (*directories, *files):
            os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)
