"""LLaMA-Factory's newest commit as an image of its own (FT_UPDATE_LLAMA_FACTORY), if the locked versions satisfy it.

The host fetches the commit's files with git, because the image has none. The arguments that this version takes are
read in the new image: recipes of the study are checked against them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent.errors import MachineError
from agent.resources import resource
from agent.run import Job, Mount, Outcome, Say
from agent.run.containers import DockerRunner
from agent.run.images import is_there, remove, run_build, tar

if TYPE_CHECKING:
    from docker import DockerClient

URL = "https://github.com/hiyouga/LLaMA-Factory"
COMMIT_LABEL = "ftloop.commit"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MISSING = re.compile(r"^llamafactory \S+ requires (\S+), which is not installed\.$", re.MULTILINE)
_CONFLICT = re.compile(r"^llamafactory \S+ has requirement (.+), but you have (.+)\.$", re.MULTILINE)
_FETCH_PATIENCE = 300.0
_JOB_PATIENCE = 300.0
_NEEDED = frozenset(["stage", "output_dir", "model_name_or_path"])
_STEP_LABEL = "ftloop.step"  # as in docker/train/update.Dockerfile


class Update(msgspec.Struct, frozen=True):
    """A training image with another LLaMA-Factory.

    Attributes:
        commit: Of LLaMA-Factory, in full. image: The image's name.
        arguments: What docker/train/make_arguments.py wrote in it, as scenarios/finetune/arguments.json has it.
    """

    commit: str
    image: str
    arguments: bytes


class NotUpdated(Exception):
    """Why there is no such image, in a few words for a person."""


def newest(
    client: DockerClient,
    environment_image: str,
    say: Say,
    *,
    needed: Collection[str] = _NEEDED,
    url: str = URL,
    branch: str = "main",
    network: str | None = None,
    patience: float = 10.0,
    archive: Path | None = None,
) -> Update:
    """The training image with the newest commit of LLaMA-Factory.

    Args:
        client: The engine.
        environment_image: The training image that is there.
        say: The build's progress.
        needed: Arguments without which it is of no use.
        url: The repository. branch: Whose newest commit is meant.
        network: Of the build, as for `images.build`.
        patience: Seconds in which the repository must answer.
        archive: Where the commit's source is kept, as a tar file.

    Raises:
        NotUpdated: It is out of reach, does not build, or is not satisfied by what the image has.
    """
    commit = _newest_commit(url, branch, patience)
    if archive:
        archive.unlink(missing_ok=True)  # of a decision that was never journaled
    update = at(client, environment_image, commit, say, url=url, network=network, archive=archive)
    if archive and not archive.is_file():  # another study had the image built
        with contextlib.suppress(NotUpdated), tempfile.TemporaryDirectory(prefix="ftloop-update-") as scratch:
            _lay_down(_source(url, commit, Path(scratch)), archive)
    if missing := sorted(set(needed) - msgspec.json.decode(update.arguments, type=dict[str, Any]).keys()):
        remove(client, [update.image])
        raise NotUpdated(f"commit {commit[:12]} has no {', '.join(missing)} any more")
    return update


def at(
    client: DockerClient,
    environment_image: str,
    commit: str,
    say: Say,
    *,
    known: bytes | None = None,
    url: str = URL,
    network: str | None = None,
    archive: Path | None = None,
) -> Update:
    """The training image with one commit of LLaMA-Factory, built unless it is there; else as `newest`.

    A study that is continued calls this with the commit of its journal, and with the arguments that it has of it:
    they are believed where the image is still there. It is built from the `archive` where that is there, and else from
    the repository, and then the archive is made.
    """
    image = image_of(environment_image, commit)
    found = is_there(client, image)
    if found and known is not None:
        return Update(commit=commit, image=image, arguments=known)
    with tempfile.TemporaryDirectory(prefix="ftloop-update-") as scratch:
        try:
            if not found:
                source = archive
                if source is None or not source.is_file():
                    say(f"LLaMA-Factory: fetching commit {commit[:12]} of {url}")
                    source = _source(url, commit, Path(scratch))
                _build(client, environment_image, image, commit, source, network, say)
                if archive and source != archive:
                    _lay_down(source, archive)
            # The installed version's own unmet requirements are what the lock leaves out on purpose.
            problems = _unmet(client, image, Path(scratch)) - _unmet(client, environment_image, Path(scratch))
            if problems:
                raise NotUpdated(f"commit {commit[:12]} needs {', '.join(sorted(problems))}")
            return Update(commit=commit, image=image, arguments=_arguments(client, image, Path(scratch)))
        except (NotUpdated, MachineError) as error:
            if not found:
                remove(client, [image])
            why = error.message.splitlines()[0] if isinstance(error, MachineError) else error
            raise NotUpdated(str(why)) from None


def image_of(environment_image: str, commit: str) -> str:
    """The derived image's name."""
    recipe = resource("docker/train/update.Dockerfile").read_bytes()
    digest = hashlib.sha256(f"{environment_image}\0{commit}\0".encode() + recipe).hexdigest()
    return f"ftloop-train-update:{digest[:12]}"


# git, on the host


def _newest_commit(url: str, branch: str, patience: float) -> str:
    listed = _git(["ls-remote", "--", url, f"refs/heads/{branch}"], patience, f"{url} cannot be reached")
    commit = listed.decode().partition("\t")[0].strip()
    if not _COMMIT.fullmatch(commit):
        raise NotUpdated(f"{url} has no branch {branch}")
    return commit


def _source(url: str, commit: str, scratch: Path) -> Path:
    """A tar file of the commit's files."""
    repository, archive = scratch / "repository", scratch / "source.tar"
    for argv in (
        ["init", "--quiet", str(repository)],
        ["-C", str(repository), "fetch", "--quiet", "--depth=1", "--", url, commit],
        ["-C", str(repository), "archive", "--format=tar", f"--output={archive}", "FETCH_HEAD"],
    ):
        _git(argv, _FETCH_PATIENCE, f"commit {commit[:12]} of {url} cannot be fetched")
    shutil.rmtree(repository)
    return archive


def _lay_down(source: Path, archive: Path) -> None:
    """Keep a tar file, whole or not at all; where the disk does not take it, the repository has to be asked again."""
    draft = archive.with_name(f".{archive.name}.draft")
    try:
        shutil.copyfile(source, draft)
        draft.replace(archive)
    except OSError:
        draft.unlink(missing_ok=True)


def _git(argv: list[str], patience: float, failed: str) -> bytes:
    """The output of git, which never asks for a password; it and its helpers end when the patience does."""
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            ["git", "-c", "credential.helper=", *argv],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise NotUpdated(f"git cannot be run ({error.strerror})") from None
    try:
        output, errors = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        raise NotUpdated(f"{failed} (no answer in {patience:.0f} s)") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        said = errors.decode("utf-8", "replace").strip().splitlines() or [f"git ended with {process.returncode}"]
        why = next((line for line in said if line.startswith("fatal: ")), said[-1])
        raise NotUpdated(f"{failed} ({why.removeprefix('fatal: ')[:200]})")
    return output


# The image, and what is asked of it


def _build(
    client: DockerClient, base: str, image: str, commit: str, source: Path, network: str | None, say: Say
) -> None:
    context = tar({"Dockerfile": resource("docker/train/update.Dockerfile"), "source.tar": source})
    labels = {COMMIT_LABEL: commit}
    try:
        run_build(
            client,
            image,
            context,
            {"BASE": base},
            network,
            say,
            environment="train",
            dockerfile="Dockerfile",
            labels=labels,
        )
    finally:
        filters: dict[str, Any] = {"dangling": True, "label": f"{_STEP_LABEL}=wheel"}
        client.images.prune(filters=filters)


def _unmet(client: DockerClient, image: str, scratch: Path) -> set[str]:
    """What LLaMA-Factory requires and does not find in an image."""
    outcome = _run(client, image, scratch, "check", ("python", "-m", "pip", "check"))
    said = Path(outcome.log).read_text("utf-8", "replace")
    missing = {re.split(r"[\s;<>=!~\[(]", name)[0] for name in _MISSING.findall(said)}
    unmet = missing | {f"{wanted} (the lock has {has})" for wanted, has in _CONFLICT.findall(said)}
    if outcome.kind not in ("ok", "exit") or (outcome.kind == "exit" and " requires " not in said and not unmet):
        raise NotUpdated(f"the requirements cannot be checked: {outcome.reason}")
    return unmet


def _arguments(client: DockerClient, image: str, scratch: Path) -> bytes:
    program = resource("docker/train/make_arguments.py")
    outcome = _run(client, image, scratch, "arguments", ("python", str(program), "arguments.json"), Mount(str(program)))
    if outcome.kind != "ok":
        said = outcome.tail.splitlines() or [outcome.reason]
        raise NotUpdated(f"its arguments cannot be read: {said[-1][:200]}")
    found = (scratch / "arguments" / "arguments.json").read_bytes()
    try:
        known = msgspec.json.decode(found, type=dict[str, dict[str, Any]])
    except msgspec.DecodeError as error:
        raise NotUpdated(f"its arguments cannot be read: {error}") from None
    if not known.keys() >= _NEEDED:
        raise NotUpdated("its arguments are not those of LLaMA-Factory any more")
    return found


def _run(client: DockerClient, image: str, scratch: Path, name: str, argv: tuple[str, ...], *mounts: Mount) -> Outcome:
    directory = scratch / name
    directory.mkdir(exist_ok=True)
    job = Job(
        name=f"update-{name}",
        environment="train",
        argv=argv,
        cwd=str(directory),
        log=str(scratch / f"{name}.log"),
        deadline=_JOB_PATIENCE,
        mounts=(*mounts, Mount(str(directory), writable=True)),
        variables={"DISABLE_VERSION_CHECK": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"},
    )
    return DockerRunner(client, {"train": image}).run(job)
