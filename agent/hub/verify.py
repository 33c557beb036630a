"""Whether downloaded bytes are those that the hub lists; huggingface_hub itself checks no hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec


class HubFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file as the hub lists it: `sha256` where it is stored by LFS, else git's blob id."""

    path: str
    size: int
    sha256: str | None = None
    git_id: str | None = None


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """A downloaded file and what is wrong with its bytes, if anything."""

    file: HubFile
    sha256: str = ""
    problem: str = ""
    only_git_id: bool = False

    @property
    def hashed(self) -> HubFile:
        """The file with the sha256 of the bytes on disk."""
        return msgspec.structs.replace(self.file, sha256=self.sha256)


def verify(staging: Path, file: HubFile) -> Verified:
    """Compare size and hashes with the hub's; what is right is also flushed to disk."""
    path = staging / file.path
    if not path.is_file():
        return Verified(file=file, problem="is missing")
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha256.update(block)
            if file.git_id is not None:
                git.update(block)
        os.fsync(stream.fileno())
    found = sha256.hexdigest()
    if size != file.size:
        problem = f"has {size:,} bytes instead of {file.size:,}"
        return Verified(file=file, sha256=found, problem=problem)
    if file.sha256 is not None and found != file.sha256:
        return Verified(file=file, sha256=found, problem=f"has sha256 {found[:12]} instead of {file.sha256[:12]}")
    if file.git_id is not None and git.hexdigest() != file.git_id:
        problem = f"has git id {git.hexdigest()[:12]} instead of {file.git_id[:12]}"
        return Verified(file=file, sha256=found, problem=problem, only_git_id=True)
    return Verified(file=file, sha256=found)


def pardon(verified: list[Verified], earlier: list[Verified], say: Callable[[str], None]) -> list[Verified]:
    """Accept a wrong git id where two transfers brought the same bytes: some mirrors list wrong ids."""
    before = {one.file.path: one.sha256 for one in earlier}
    pardoned = []
    for one in verified:
        if one.only_git_id and before.get(one.file.path) == one.sha256:
            say(f"{one.file.path} {one.problem}, twice with the same bytes: the hub's listing is taken to be wrong")
            one = Verified(file=one.file, sha256=one.sha256)
        pardoned.append(one)
    return pardoned


def discard(staging: Path, damaged: Iterable[Verified]) -> None:
    """Remove files together with huggingface_hub's notes that say they are complete."""
    for one in damaged:
        (staging / one.file.path).unlink(missing_ok=True)
        (staging / ".cache/huggingface/download" / f"{one.file.path}.metadata").unlink(missing_ok=True)


def described(damaged: Sequence[Verified]) -> str:
    """The first few damaged files and what is wrong with each."""
    return shortened([f"{one.file.path} {one.problem}" for one in damaged])


def shortened(words: Sequence[str]) -> str:
    """The first four, and how many more."""
    return ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")
