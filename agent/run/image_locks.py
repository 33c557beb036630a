"""Who uses which image: a lock file for each, since all workspaces of a user share one engine and its images.

A study shares the lock of its images until its process ends, however that ends: also between two jobs, when no
container shows that it needs them. Who removes an image must have its lock alone. The files are empty and stay.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from agent.errors import MachineError
from agent.run.environments import default_root


class Uses:
    """The images that this process needs."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def share(self, image: str) -> None:
        """From now on nobody may remove it; waits for one who is just doing that."""
        if image not in self._held:
            descriptor = _open(image)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            self._held[image] = descriptor

    def release(self) -> None:
        """It needs none of them any more."""
        while self._held:
            os.close(self._held.popitem()[1])


@contextmanager
def alone(image: str) -> Iterator[bool]:
    """Whether nobody uses the image; then nobody can begin to until the block is left."""
    descriptor = _open(image)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _open(image: str) -> int:
    """A descriptor of the image's lock file, which no child process inherits."""
    file = default_root().parent / "images" / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', image)}.lock"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        hint = "see that its directory can be written, or name another one with XDG_CACHE_HOME"
        raise MachineError(f"the lock {file} cannot be opened: {error.strerror}", hint) from None
