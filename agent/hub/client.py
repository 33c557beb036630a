"""Everything that is said to the hub: listings and transfers by huggingface_hub, and what their failures mean.

huggingface_hub is imported inside the functions: it is slow, and reads HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN once.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from agent.errors import MachineError, UsageError
from agent.hub.verify import HubFile

Kind = Literal["dataset", "model"]
Say = Callable[[str], None]
Result = TypeVar("Result")
WORDS: dict[Kind, str] = {"dataset": "data set", "model": "model"}
_POLL_SECONDS = 0.1
_SAY_SECONDS = 5.0
_WAITS = (1.0, 4.0)  # seconds before the second and third attempt


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot: a repository at a revision, and the patterns of the files that are taken and left."""

    kind: Kind
    name: str
    revision: str
    taken: tuple[str, ...]
    left: tuple[str, ...]


class _Stopped(Exception):
    """Raised inside huggingface_hub's threads to end a download that nobody waits for any more."""


def listing(kind: Kind, name: str) -> tuple[str, list[HubFile]]:
    """The hub's current commit of a repository, and its files."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    revision = api.repo_info(name, repo_type=kind, timeout=30).sha
    if not revision:
        raise ValueError("it names no revision")
    files = []
    for entry in api.list_repo_tree(name, repo_type=kind, revision=revision, recursive=True):
        if isinstance(entry, RepoFile):
            sha256 = entry.lfs.sha256 if entry.lfs is not None else None
            git_id = entry.blob_id if sha256 is None and re.fullmatch("[0-9a-f]{40}", entry.blob_id or "") else None
            files.append(HubFile(path=entry.path, size=entry.size, sha256=sha256, git_id=git_id))
    return revision, files


def transfer(request: Request, staging: Path, total: int, say: Say) -> None:
    """Fetch what `staging` lacks, in a thread, so that this one can report and be interrupted."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            _snapshot(request, staging, stop)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=work, name=f"download {request.name}", daemon=True)
    thread.start()
    said = time.monotonic()
    try:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            if time.monotonic() - said >= _SAY_SECONDS:
                said, present = time.monotonic(), min(_size(staging), total)
                say(f"downloading {request.name}: {amount(present)} of {amount(total)} ({present / max(total, 1):.0%})")
    finally:
        stop.set()
    if failures:
        raise failures[0]


def _snapshot(request: Request, staging: Path, stop: threading.Event) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging, tqdm

    class Silent(tqdm):  # type: ignore[misc]  # huggingface_hub is untyped here
        """Draws nothing (progress is read off the disk) and is where a download can be stopped."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if stop.is_set():
                raise _Stopped
            return None

    logging.set_verbosity_error()  # its warnings would break the live terminal; what matters is said here
    snapshot_download(
        request.name,
        repo_type=request.kind,
        revision=request.revision,
        local_dir=staging,
        cache_dir=staging / ".cache" / "hub",
        allow_patterns=list(request.taken),
        ignore_patterns=list(request.left),
        tqdm_class=Silent,
        max_workers=4,
    )


def patiently(action: Callable[[], Result], say: Say) -> Result:
    """Try again where a network or a server may have hiccuped."""
    for wait in _WAITS:
        try:
            return action()
        except Exception as error:
            if not _transient(error):
                raise
            say(f"the hub did not answer well ({_one_line(error)}); trying again in {wait:.0f} s")
            time.sleep(wait)
    return action()


def _transient(error: Exception) -> bool:
    import httpx2
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return bool(error.response.status_code >= 500)
    if isinstance(error, OfflineModeIsEnabled) or isinstance(error.__cause__, OfflineModeIsEnabled):
        return False
    # huggingface_hub raises a bare OSError for a body of the wrong length, and LocalEntryNotFoundError (an
    # EntryNotFoundError) where a server stopped answering in between.
    return isinstance(error, httpx2.TransportError | EntryNotFoundError) or (
        isinstance(error, OSError) and error.errno is None
    )


@contextmanager
def plain_errors(kind: Kind, name: str, target: Path) -> Iterator[None]:
    """Turn what huggingface_hub, the network and the disk raise into one message that says what to do."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    hub = constants.ENDPOINT
    by_hand = f"put the {WORDS[kind]}'s files into {target}, or give their directory in place of the name"
    try:
        yield
    except (GatedRepoError, DisabledRepoError) as error:
        raise UsageError(
            f"the {WORDS[kind]} {name} on {hub} is not open to everyone",
            f"ask for access on its page and set HF_TOKEN, or {by_hand}",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"there is no {WORDS[kind]} {name}: looked at ./{name}, {target} and {hub}",
            f"check the spelling (set HF_TOKEN where it is private), or {by_hand}",
        ) from error
    except OfflineModeIsEnabled as error:
        raise MachineError(
            f"the {WORDS[kind]} {name} is not on disk (looked at ./{name} and {target}), and HF_HUB_OFFLINE is set",
            f"unset HF_HUB_OFFLINE to download it, or {by_hand}",
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(f"no space left while downloading {name}", "free some disk space") from error
        if error.errno is not None and error.filename is not None:
            raise UsageError(
                f"{error.filename} cannot be written: {error.strerror}",
                "set FT_FILE_PATH to a directory that you may write to",
            ) from error
        raise _unreachable(kind, name, hub, by_hand, error) from error
    except (httpx2.HTTPError, ValueError) as error:
        raise _unreachable(kind, name, hub, by_hand, error) from error


def _unreachable(kind: Kind, name: str, hub: str, by_hand: str, error: Exception) -> MachineError:
    return MachineError(
        f"the {WORDS[kind]} {name} could not be downloaded from {hub}: {_one_line(error)}",
        f"check the network and HF_ENDPOINT and run the same command (finished files are kept), or {by_hand}",
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def amount(size: int) -> str:
    """A number of bytes for people."""
    for unit, words in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {words}"
    return f"{size} bytes"


def _size(directory: Path) -> int:
    """Bytes of the files in a directory that others are changing."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_size
            except OSError:
                continue
    return total
