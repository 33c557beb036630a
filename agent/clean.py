"""`ftloop clean`: gives back what dead calls left behind and, where asked, what can be made or fetched again.

what                              goes where
processes, containers             their owner is dead
half-made downloads               nobody holds their lock
temporary directories             nothing in them changed for an hour, which is longer than any of them is needed
kept predictions                  nobody had them judged for a week
drafts of an output               nobody holds their study
--checkpoints: weights            nobody holds their study, the trial is over, and it is not the best, or the study is
                                  finished and output/ has the whole copy
--environments, --images          not of this version; no study of the workspace is at work
                                  (nor, for an image, any other that needs it)

What is locked here stays locked until it is gone. No link is followed (`agent.removal`).
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.errors import MachineError, StudyError
from agent.hub.client import amount
from agent.journal import Journal, State
from agent.records import Sealed
from agent.removal import InUse, Item, Remover, directories, files, held
from agent.report.words import clean as cleaned
from agent.settings import Settings, load
from agent.store import StudyPaths
from agent.study import LEFT_BEHIND
from scenarios.finetune import demo

if TYPE_CHECKING:
    from docker import DockerClient

HOUR = 3600.0
WEEK = 7 * 24 * HOUR
_TEMPORARY = (
    ("models", r"\.making-[a-z0-9_]{8}"),
    (f"models/{Path(demo.MODEL).parent}", rf"\.{Path(demo.MODEL).name}\.[0-9a-f]+"),
    ("datasets/demo", r"\.[a-z]+\.[0-9a-f]+"),
    ("scores", r"\.[0-9a-f]{64}\.[0-9a-f]+"),
)
_PREDICTIONS = r"[0-9a-f]{64}\.predictions\.jsonl|\.[0-9a-f]{64}\.predictions\.jsonl\.[0-9]+\.draft"
_ENVIRONMENT = r"[a-z]+-[0-9a-f]{12}"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for beyond what dead calls left behind; with `dry_run`, nothing is touched."""

    images: bool = False
    checkpoints: bool = False
    environments: bool = False
    dry_run: bool = False


def run(config: Path | None, wanted: Wanted) -> int:
    """Clean and print each item as it goes, and the total; 3 where something could not be removed."""
    settings = load({}, config, os.environ, Path.cwd())
    items = []
    for item in clean(settings, wanted):
        items.append(item)
        size = amount(item.bytes) if item.bytes else ""
        print(f"{item.fate:<8}  {size:>10}  {cleaned(item.what, 300)}: {cleaned(item.why, 300)}", flush=True)
    if not any(item.fate in ("removed", "would go") for item in items):
        print("nothing to remove")
    else:
        print(f"{'would free' if wanted.dry_run else 'freed'} {amount(sum(item.bytes for item in items))}")
    return MachineError.exit_code if any(item.fate == "failed" for item in items) else 0


def clean(settings: Settings, wanted: Wanted) -> Generator[Item, None, None]:
    """Remove it, one item after the other; what is in use or cannot be removed is an item too, never an error."""
    yield from _dead_jobs(wanted.dry_run)
    root = settings.file_path.resolve()
    at_work: list[str] = []
    if root.is_dir():
        remover = Remover(root, wanted.dry_run)
        yield from _downloads(remover)
        yield from _temporary(remover)
        for name in _studies(root):
            kept = ""
            try:
                with held(root / "studies" / name / "study.lock", root):
                    yield from _study(remover, name, wanted)
            except InUse as holder:
                at_work.append(name)
                kept = f"in use by {holder}"
            except OSError as error:
                kept = f"its lock cannot be taken: {error.strerror}"
            if kept and (wanted.checkpoints or _drafts(root, name)):
                yield Item(what=f"studies/{name}", fate="kept", why=kept)
    busy = f"the study {at_work[0]} is at work" if at_work else ""
    if wanted.environments:
        yield from _environments(settings, busy, wanted.dry_run)
    if wanted.images:
        yield from _images(busy, wanted.dry_run)


# What dead owners left behind


def _dead_jobs(dry_run: bool) -> Iterator[Item]:
    """Processes and containers whose owner is dead, of both runners."""
    from agent.run.containers import DockerRunner, docker_answers
    from agent.run.environments import Environments
    from agent.run.local import LocalRunner

    def item(what: str) -> Item:
        return Item(what=what, fate="would go" if dry_run else "removed", why="its owner is dead")

    for name in _dead_processes() if dry_run else LocalRunner(Environments()).reap():
        yield item(f"processes of the job {name}")
    if docker_answers() is not None:
        return
    try:
        with _engine() as client:
            for name in _dead_containers(client) if dry_run else DockerRunner(client).reap():
                yield item(f"container of the job {name}")
    except MachineError as error:
        yield Item(what="containers", fate="failed", why=error.message)


def _dead_processes() -> list[str]:
    """The jobs that `LocalRunner.reap` would end."""
    from agent.run import owner, supervisor

    def dead(token: str) -> bool:
        return token.count("/") == 6 and owner.is_dead("/".join(token.split("/")[:5]))

    return sorted({token.split("/")[5] for token in supervisor.marked(dead).values()})


def _dead_containers(client: DockerClient) -> list[str]:
    """The jobs whose containers `DockerRunner.reap` would remove."""
    from agent.run import owner
    from agent.run.containers import JOB_LABEL, OWNER_LABEL

    found = client.api.containers(all=True, filters={"label": OWNER_LABEL})
    labels: list[dict[str, str]] = [container["Labels"] for container in found]
    return sorted(each.get(JOB_LABEL, "") for each in labels if owner.is_dead(each.get(OWNER_LABEL, "")))


@contextmanager
def _engine() -> Iterator[DockerClient]:
    """A client; MachineError for whatever the engine has to say against it."""
    import docker
    import requests

    from agent.run.containers import connect

    client = connect()
    try:
        yield client
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise MachineError(str(error)) from None
    finally:
        client.close()


def _downloads(remover: Remover) -> Iterator[Item]:
    """Half-made downloads. Only their files go: whoever waits for the lock beside them goes on undisturbed."""
    for kind in ("datasets", "models"):
        for name in directories(remover.root, f"{kind}/.partial"):
            place = f"{kind}/.partial/{name}"
            if "files" not in directories(remover.root, place):
                continue
            try:
                with held(remover.root / place / "lock", remover.root):
                    yield remover.remove(f"{place}/files", "a half-made download that nobody works on")
            except InUse:
                yield Item(what=place, fate="kept", why="is being downloaded")
            except OSError:
                continue  # without a lock of ours it is none of our downloads


def _temporary(remover: Remover) -> Iterator[Item]:
    for folder, pattern in _TEMPORARY:
        for name in directories(remover.root, folder, pattern):
            place = f"{folder}/{name}"
            if time.time() - remover.newest(place) < HOUR:
                yield Item(what=place, fate="kept", why="changed within the last hour, so it may be in use")
            else:
                yield remover.remove(place, "a temporary directory that a killed call left")
    for name in files(remover.root, "scores", _PREDICTIONS):
        if item := remover.remove_file(f"scores/{name}", "predictions that nobody had judged for a week", WEEK):
            yield item


# Studies


def _studies(root: Path) -> list[str]:
    return [name for name in directories(root, "studies") if (root / "studies" / name / "journal.jsonl").is_file()]


def _drafts(root: Path, name: str) -> list[str]:
    return directories(root, "output", rf"\.{re.escape(name)}\.(new|old)")


def _study(remover: Remover, name: str, wanted: Wanted) -> Iterator[Item]:
    """What can go of a study that this process holds."""
    for draft in _drafts(remover.root, name):
        # Killed between two renames, the old winner lies in .old and nothing in its place; it is the only copy then.
        if draft.endswith(".old") and not (remover.root / "output" / name).is_dir():
            yield Item(what=f"output/{draft}", fate="kept", why="the only copy of a winner; go on with its study first")
        else:
            yield remover.remove(f"output/{draft}", "a draft of an output that a killed call left")
    if wanted.checkpoints:
        try:
            state = Journal(remover.root / "studies" / name / "journal.jsonl").state
        except (StudyError, OSError) as error:
            yield Item(what=f"studies/{name}", fate="kept", why=f"its journal cannot be read: {error}")
        else:
            yield from _weights(remover, name, state)


def _weights(remover: Remover, name: str, state: State) -> Iterator[Item]:
    """The weights of trials that are over. What a study still needs to go on is kept."""
    paths = StudyPaths(remover.root / "studies" / name)
    for number in [trial.number for trial in state.trials] + [len(state.trials) + 1]:
        for stage in ("mini-run", "train"):
            weights = paths.weights(number, stage)
            place = str(weights.relative_to(remover.root))
            if not remover.there(place):
                continue
            if number > len(state.trials):
                yield Item(what=place, fate="kept", why=f"trial {number} is not over")
            elif stage == "train" and number == state.best and (need := _needed(remover.root, name, state, weights)):
                yield Item(what=place, fate="kept", why=need)
            elif stage == "train" and number == state.best:
                yield remover.remove(place, f"weights of trial {number}, the winner: output/{name} has them")
            else:
                yield remover.remove(place, f"weights of trial {number}, which is over")
        yield from _confirmations(remover, paths, number, state)


def _confirmations(remover: Remover, paths: StudyPaths, number: int, state: State) -> Iterator[Item]:
    """The weights that --confirm left where it was interrupted between training and scoring, or is of no use now."""
    for weights in sorted(paths.trial(number).glob("confirm-*-train/model")):
        place = str(weights.relative_to(remover.root))
        scored = weights.parent.name.removesuffix("train") + "bench"
        if number == state.best and (number, scored) not in state.stages:
            yield Item(what=place, fate="kept", why="--confirm is not finished with it")
        else:
            yield remover.remove(place, f"weights of trial {number}'s recipe from another seed, which are scored")


def _needed(root: Path, name: str, state: State, weights: Path) -> str:
    """Why the best trial's weights must stay; "" where the study is finished and the published copy is whole."""
    assert state.best is not None
    if state.published != state.best or state.result(state.best, "test", Sealed) is None:
        return f"trial {state.best} is the best of a study that is not finished"
    if not _whole(weights, root / "output" / name, f"# {name}, trial {state.best}\n"):
        return f"output/{name} has no whole copy of it"
    return ""


def _whole(weights: Path, copy: Path, first_line: str) -> bool:
    """Whether `copy` is this trial's, and has every file that publishing copies, at its full size."""
    left_out = shutil.ignore_patterns(*LEFT_BEHIND)
    try:
        with (copy / "recipe.yaml").open(encoding="utf-8") as recipe:
            if recipe.readline() != first_line:
                return False
        for folder, directories, names in os.walk(weights):
            left = left_out(folder, [*directories, *names])
            directories[:] = [name for name in directories if name not in left]
            for path in [Path(folder) / name for name in names if name not in left]:
                if (copy / path.relative_to(weights)).stat().st_size != path.stat().st_size:
                    return False
    except (OSError, UnicodeDecodeError):
        return False
    return True


# Environments and images


def _environments(settings: Settings, busy: str, dry_run: bool) -> Iterator[Item]:
    """Virtual environments of other versions."""
    from agent.run.environments import Environments, default_root

    root = (settings.environments if settings.origin("environments") != "default" else default_root()).resolve()
    current = {Environments(root).python(name).parents[1].name for name in ("train", "bench")}
    remover = Remover(root, dry_run)
    for name in directories(root, ".", _ENVIRONMENT):
        if name in current or not (root / name / "pyvenv.cfg").is_file():
            continue
        why_not = busy or _runs_below(root / name)
        if why_not:
            yield Item(what=str(root / name), fate="kept", why=why_not)
            continue
        try:
            with held(root / f"{name}.lock", root):
                yield remover.remove(name, "a virtual environment that this version does not use", shown=root / name)
        except InUse:
            yield Item(what=str(root / name), fate="kept", why="is being built")
        except OSError:
            continue  # ours have a lock beside them


def _runs_below(directory: Path) -> str:
    """Which process runs a program of `directory`, or names a file of it; "" if none does."""
    prefix = f"{directory}/".encode()
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if any(word.startswith(prefix) for word in line.read_bytes().split(b"\0")):
                return f"in use by process {line.parent.name}"
        except OSError:
            continue  # it has ended
    return ""


def _images(busy: str, dry_run: bool) -> Iterator[Item]:
    """Our images, but those that a container was made from."""
    from agent.run.containers import docker_answers

    if docker_answers() is not None:
        yield Item(what="images", fate="kept", why="no engine answers, so there are no images to remove")
        return
    try:
        with _engine() as client:
            from agent.run.image_locks import alone
            from agent.run.images import ours

            for tag in ours(client):
                with alone(tag) as unused:
                    yield _image(client, tag, busy if unused else "a study needs it", dry_run)
    except MachineError as error:
        yield Item(what="images", fate="failed", why=error.message)


def _image(client: DockerClient, tag: str, busy: str, dry_run: bool) -> Item:
    from agent.run.images import remove

    users = client.containers.list(all=True, ignore_removed=True, filters={"ancestor": tag})
    if busy or users:
        return Item(what=tag, fate="kept", why=busy or f"the container {users[0].name} was made from it")
    if dry_run:
        size = int(client.images.get(tag).attrs["Size"])
        return Item(what=tag, fate="would go", why="an image of ftloop", bytes=size)
    return Item(what=tag, fate="removed", why="an image of ftloop", bytes=remove(client, [tag]))
