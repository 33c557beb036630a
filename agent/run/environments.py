"""The locked virtual environments of the local runner, made from the same requirements as the images.

root/train-3f2a9c01d4e5/            the environment; the name holds the hash of all that defines it
root/train-3f2a9c01d4e5/.complete   written last: without it, the next call builds anew
root/train-3f2a9c01d4e5.lock        held while it is built, by pip too
root/train-3f2a9c01d4e5.log         what pip said
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.errors import MachineError
from agent.resources import resource
from agent.run import EnvironmentName, Say
from agent.run.logs import tail

NEEDED_BYTES = 3 * 1024**3
_INHERITED = re.compile(
    r"PIP_\w+|XDG_\w+|(?:HTTPS?|ALL|NO)_PROXY|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    r"|HOME|PATH|LANG|TMPDIR|NETRC|LD_LIBRARY_PATH",
    re.IGNORECASE,
)
_HEARTBEAT = 15.0


def default_root() -> Path:
    """`$XDG_CACHE_HOME/ftloop/environments`, by default below `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ftloop" / "environments"


class Environments:
    """Virtual environments, each built once and shared by all studies of this machine.

    Args:
        root: Where they lie; `default_root()` unless said otherwise.
        recipes: The folder that holds `requirements.torch` and `<name>/requirements.lock`; ours by default.
    """

    def __init__(self, root: Path | None = None, recipes: Path | None = None) -> None:
        self._root = root or default_root()
        self._recipes = recipes or resource("docker")

    def python(self, name: EnvironmentName) -> Path:
        """The interpreter of the environment `name`, whether or not it has been built."""
        return self._directory(name) / "bin" / "python"

    def ready(self, name: EnvironmentName, say: Say) -> None:
        """Build the environment unless it is there; safe from several processes at once.

        Raises:
            MachineError: if there is no room for it, or pip fails.
        """
        directory = self._directory(name)
        if _complete(directory):
            return
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(
                f"cannot make {self._root} for the {name} environment: {error.strerror}",
                "make it writable, or set FT_ENVIRONMENTS to a directory that is",
            ) from None
        with _locked(directory.with_name(directory.name + ".lock"), name, say) as lock:
            if not _complete(directory):
                self._build(name, directory, lock, say)

    def _build(self, name: EnvironmentName, directory: Path, lock: int, say: Say) -> None:
        self._check_space(name)
        shutil.rmtree(directory, ignore_errors=True)
        log = directory.with_name(directory.name + ".log")
        log.write_text("")
        requirements = self._recipes / name / "requirements.lock"
        torch = self._recipes / "requirements.torch"

        def step(does: str, *argv: str | Path) -> None:
            say(f"{name} environment: {does}")
            started = time.monotonic()
            _run_step(name, argv, log, lock, lambda: say(f"{name} environment: {does}: {_since(started)}"))

        pip = (directory / "bin" / "python", "-m", "pip", "install", "--no-user", "--no-input", "--progress-bar=off")
        say(f"{name} environment: building {directory} (once; about 2 GB, a minute or two)")
        started = time.monotonic()
        step("virtual environment", sys.executable, "-m", "venv", directory)
        # Byte code is left to the first import: compiling all of it takes longer than installing it.
        # torch comes first, with what its build of this machine needs, held to the lock's versions.
        step("torch", *pip, "--no-compile", "--constraint", requirements, "--requirement", torch)
        count = len(requirements.read_text().split())
        step(f"{count} locked packages", *pip, "--no-compile", "--no-deps", "--requirement", requirements)
        for_gpus = self._recipes / name / "requirements.gpu"
        if for_gpus.is_file() and _is_cuda_build(name, directory, log):
            step("packages for GPUs", *pip, "--no-compile", "--no-deps", "--requirement", for_gpus)
        self._overlay(name, directory)
        (directory / ".complete").write_text("")
        say(f"{name} environment: ready after {_since(started)}")

    def _overlay(self, name: EnvironmentName, directory: Path) -> None:
        """Copy the modules that stand in for packages which the lock leaves out."""
        overlay = self._recipes / name / "overlay"
        if overlay.is_dir():
            (packages,) = directory.glob("lib/python3.*/site-packages")
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(overlay, packages, dirs_exist_ok=True, ignore=ignored)

    def _check_space(self, name: EnvironmentName) -> None:
        free = shutil.disk_usage(self._root).free
        if free < NEEDED_BYTES:
            raise MachineError(
                f"the {name} environment needs about {NEEDED_BYTES >> 30} GB in {self._root}, "
                f"where {free / 2**30:.1f} GB are free",
                "free some space, or set FT_ENVIRONMENTS to a directory on a larger disk",
            )

    def _directory(self, name: EnvironmentName) -> Path:
        digest = hashlib.sha256(f"{platform.python_version()} {platform.machine()}".encode())
        folder = self._recipes / name
        own = (folder / "requirements.lock", *folder.glob("requirements.gpu"), *sorted(folder.glob("overlay/**/*.py")))
        for path in (self._recipes / "requirements.torch", *own):
            digest.update(f"\0{path.relative_to(self._recipes)}\0".encode())
            digest.update(path.read_bytes())
        return self._root / f"{name}-{digest.hexdigest()[:12]}"


def _complete(directory: Path) -> bool:
    return (directory / ".complete").is_file()


def _is_cuda_build(name: str, directory: Path, log: Path) -> bool:
    """Whether the environment's torch is one for NVIDIA GPUs, as docker/train/Dockerfile asks too."""
    code = "import torch; print(torch.version.cuda is not None)"
    done = subprocess.run([directory / "bin" / "python", "-c", code], capture_output=True, text=True, env={})
    if done.returncode != 0:
        log.write_text(done.stderr)
        raise _failed(name, log)
    return done.stdout.strip() == "True"


def _since(started: float) -> str:
    return f"{time.monotonic() - started:.0f} s"


@contextmanager
def _locked(path: Path, name: str, say: Say) -> Iterator[int]:
    """Hold an exclusive lock; its descriptor is what child processes inherit to hold it too."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name} environment: another process is building it; waiting")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _run_step(name: str, argv: Sequence[str | Path], log: Path, lock: int, heartbeat: Callable[[], None]) -> None:
    """Run one step of a build. It inherits the lock, so that no other build starts beside it if we are killed."""
    environment = {key: value for key, value in os.environ.items() if _INHERITED.fullmatch(key)}
    environment["DS_BUILD_OPS"] = "0"  # DeepSpeed's kernels are not compiled: training uses none of them
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, pass_fds=[lock]
        )
        try:
            while True:
                try:
                    code = process.wait(_HEARTBEAT)
                    break
                except subprocess.TimeoutExpired:
                    heartbeat()
        except BaseException:
            process.kill()
            process.wait()
            raise
    if code != 0:
        raise _failed(name, log)


def _failed(name: str, log: Path) -> MachineError:
    return MachineError(
        f"building the {name} environment failed; {log} ends with\n{tail(log, lines=15)}",
        "check the network and pip's configuration (PIP_INDEX_URL, PIP_FIND_LINKS, proxies), then run it again",
    )
