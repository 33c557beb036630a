"""Which LLaMA-Factory a study trains with: decided before its first trial, journaled, and the same from then on.

Recipes that were trained by different versions cannot be compared, so a continued study gets the version that it began
with, or an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.errors import MachineError
from agent.journal import Journal, LlamaFactoryChosen
from agent.run import Runner, Say, updates
from agent.run.containers import DockerRunner
from agent.run.updates import NotUpdated, Update
from agent.store import StudyPaths
from scenarios.finetune.arguments import Argument, decode
from scenarios.finetune.files import replacing


@dataclass(frozen=True)
class Source:
    """Where commits come from.

    Attributes:
        url: The repository. branch: Whose newest commit is taken.
        network: Of the image's build; None as for `agent.run.images.build`.
    """

    url: str = updates.URL
    branch: str = "main"
    network: str | None = None


@dataclass(frozen=True)
class Trainer:
    """What trains: the runner, and the arguments of its LLaMA-Factory (None for the installed one's)."""

    runner: Runner
    arguments: dict[str, Argument] | None = None


def settle(
    runner: Runner,
    journal: Journal,
    paths: StudyPaths,
    *,
    wanted: bool,
    needed: Collection[str],
    say: Say,
    source: Source = Source(),
) -> Trainer:
    """The version of the study's journal, or a decision for it.

    Args:
        runner: Ready to train.
        journal: Of the study; gets the decision where it has none.
        paths: Of the study; the arguments and the source of an update are kept there.
        wanted: FT_UPDATE_LLAMA_FACTORY; what the study has decided outranks it.
        needed: Arguments that every training sets.
        say: Told what is decided, and the progress of a build.
        source: Where an update comes from.

    Raises:
        MachineError: The study began with a commit that cannot be had here.
    """
    chosen = journal.state.llama_factory
    if chosen is None:
        return _decide(runner, journal, paths, wanted=wanted, needed=needed, say=say, source=source)
    if chosen.commit is None:
        if wanted and isinstance(runner, DockerRunner):
            say(f"LLaMA-Factory: the installed version, with which this study began ({chosen.why})")
        return Trainer(runner)
    return _again(runner, journal, paths, chosen, chosen.commit, say, source)


def _decide(
    runner: Runner,
    journal: Journal,
    paths: StudyPaths,
    *,
    wanted: bool,
    needed: Collection[str],
    say: Say,
    source: Source,
) -> Trainer:
    """Decide before the first trial, and write it down."""
    try:
        if not wanted:
            raise NotUpdated("FT_UPDATE_LLAMA_FACTORY=False")
        if journal.state.begun:
            raise NotUpdated("trials of this study were trained with it already")
        if not isinstance(runner, DockerRunner):
            raise NotUpdated("FT_UPDATE_LLAMA_FACTORY needs the docker runner")
        update = updates.newest(
            runner.client,
            runner.environment_image("train"),
            say,
            needed=needed,
            url=source.url,
            branch=source.branch,
            network=source.network,
            archive=paths.llama_factory,
        )
    except NotUpdated as why:
        if wanted:
            say(f"LLaMA-Factory is not updated: {why}; going on with the installed version")
        journal.append(LlamaFactoryChosen(at=journal.now(), commit=None, arguments=None, why=str(why)))
        return Trainer(runner)
    say(f"LLaMA-Factory: commit {update.commit[:12]}, the newest of {source.url}, for all trials of this study")
    return _keep(runner, journal, paths, update, "the newest commit when the study began")


def _again(
    runner: Runner,
    journal: Journal,
    paths: StudyPaths,
    chosen: LlamaFactoryChosen,
    commit: str,
    say: Say,
    source: Source,
) -> Trainer:
    """The commit that the study began with; nobody is asked for a newer one."""
    began = f"the study {paths.root.name} began with LLaMA-Factory's commit {commit[:12]}"
    otherwise = f"or move {paths.root} away to search anew: trainings by two versions cannot be compared"
    if not isinstance(runner, DockerRunner):
        raise MachineError(f"{began}, which only the docker runner can train with", f"use --runner docker, {otherwise}")
    known = _kept(paths, chosen)
    if chosen.source is not None and _digest(paths.llama_factory) != chosen.source:
        paths.llama_factory.unlink(missing_ok=True)  # it was changed: fetched again
    try:
        update = updates.at(
            runner.client,
            runner.environment_image("train"),
            commit,
            say,
            known=known,
            url=source.url,
            network=source.network,
            archive=paths.llama_factory if chosen.source is not None else None,
        )
    except NotUpdated as why:
        raise MachineError(
            f"{began}, and its image cannot be built again: {why}",
            f"see that {source.url} can be reached and run the same command again, {otherwise}",
        ) from None
    say(f"LLaMA-Factory: commit {commit[:12]}, with which this study began")
    if known is None:
        return _keep(runner, journal, paths, update, chosen.why)
    return Trainer(runner.with_update(update.image), decode(known))


def _keep(runner: DockerRunner, journal: Journal, paths: StudyPaths, update: Update, why: str) -> Trainer:
    """Lay the arguments down, then journal commit and hash: what the journal says is on the disk."""
    arguments = decode(update.arguments)
    with replacing(paths.arguments) as file:
        file.write(update.arguments.decode())
    digest = hashlib.sha256(update.arguments).hexdigest()
    kept = _digest(paths.llama_factory)
    journal.append(LlamaFactoryChosen(at=journal.now(), commit=update.commit, arguments=digest, why=why, source=kept))
    return Trainer(runner.with_update(update.image), arguments)


def _digest(file: Path) -> str | None:
    """The SHA-256 of a file; None where there is none."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def _kept(paths: StudyPaths, chosen: LlamaFactoryChosen) -> bytes | None:
    """The commit's arguments as the journal knows them; None where the file is gone or was changed."""
    try:
        text = paths.arguments.read_bytes()
        decode(text)
    except (OSError, msgspec.MsgspecError):
        return None
    return text if hashlib.sha256(text).hexdigest() == chosen.arguments else None
