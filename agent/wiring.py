"""The one place where everything is joined: settings, what is studied, runner, proposer, scenario, study."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from agent import hardware, hub, llama_factory
from agent.briefing import allowed_keys, study_brief
from agent.budget import Budget
from agent.chat import choose_model, left_in_words, limits_in_words, require_proposer, study_budget
from agent.data_work import data_work, require_prices
from agent.errors import MachineError, StudyError, UsageError
from agent.gather import Subject, gather, require_data_set
from agent.hardware import Hardware
from agent.hub.client import amount
from agent.interrupted import end_interrupted
from agent.journal import FORMAT, DataScanned, Journal, StudyOpened
from agent.llm import ChatModel, Replay
from agent.options import LoopOptions
from agent.plans import plan_on
from agent.propose import Proposer, policy, writer
from agent.propose.hybrid import Hybrid, asked_for
from agent.propose.random_search import Random
from agent.propose.tpe import Tpe
from agent.records import Identity, Recipe
from agent.report import View
from agent.report.live import make_view
from agent.report.markdown import write_report
from agent.report.summary import summary
from agent.report.words import count, duration
from agent.ruler import choose_judges, sensitivity
from agent.run import Runner, Say
from agent.run.containers import DockerRunner
from agent.run.gpus import environment_of_jobs
from agent.run.mounts import let_jobs_read
from agent.settings import Settings, load
from agent.store import IndexEntry, StudyPaths, Workspace, holder, identity_hash, locked, new_entry
from agent.study import Lab, StageBench, Study, allowance, study_report
from scenarios.finetune import contamination, data, footprint, template_check, training
from scenarios.finetune.scenario import FineTune
from scenarios.finetune.space import default_space
from scenarios.finetune.training import TrainingPlan


@contextmanager
def connect(options: LoopOptions) -> Iterator[Lab]:
    """One call's laboratory, from the command line; prints the summary and writes the report when it closes."""
    settings = _settings(options)
    require_data_set(options, settings.file_path)  # before a workspace is made for nothing
    workspace = Workspace(settings.workspace())
    view = make_view(sys.stdout)
    try:
        with terminated_like_ctrl_c():
            for note in settings.notes():
                view.say(note)
            require_proposer(options, settings)  # refused now rather than after a download
            machine = hardware.look(environment_of_jobs(os.environ, settings.gpus))
            runner = choose_runner(settings, view.say, unsafe_local=options.unsafe_local)
            require_prices(options, settings, runner)
            subject = gather(options, settings, workspace, runner, machine, view)
            paths = workspace.study(subject.identity)
            with locked(paths), forgotten_if_refused(paths):
                yield from _at_work(options, settings, workspace, runner, machine, subject, paths, view)
    finally:
        view.close()


def _at_work(
    options: LoopOptions,
    settings: Settings,
    workspace: Workspace,
    runner: Runner,
    machine: Hardware,
    subject: Subject,
    paths: StudyPaths,
    view: View,
) -> Iterator[Lab]:
    for name in runner.reap():
        view.say(f"ended what a killed call had left running: {name}")
    journal = open_journal(paths, subject.identity)
    if journal.torn:
        view.say("the journal's last line was torn by a crash: what it would have said is done again")
    plan = training_plan(settings, subject, machine, paths, view.say)
    if (found := plan.data.contamination) is not None and found != journal.state.contamination:
        journal.append(DataScanned(at=journal.now(), contamination=found))
    end_interrupted(journal, paths, view)  # before the budget is made: what the killed call spent is part of it
    trials, stages = allowance(journal.state.calls, options.loop_n, options.step_n)
    if trials != options.loop_n or stages != options.step_n:
        view.say("the last call was killed: what it still owed is finished first, then what this one adds")
    budget = study_budget(options, settings, journal.state, machine, trials, stages)
    model = choose_model(options, settings, budget, view.say)
    author = writer.author(model) if model else settings.proposer.replace("auto", Tpe.name)
    author += ", numbers by TPE" if settings.proposer == "hybrid" else ""
    view.plan(_plan_rows(subject, plan, settings, machine, runner.name, author, trials, stages, options, paths))
    for line in (*subject.measures.notes, *sensitivity(subject.measures, settings)):
        view.say(line)
    # After everything that can be wrong: this may take minutes.
    runner, plan = ready(runner, journal, paths, plan, settings, view.say)
    name = paths.root.name
    labels = {"study": name, "stage": paths.templates.name}
    bench = StageBench(paths.templates, f"{name}-templates", labels, runner, Budget(), view)
    template_check.check(bench, plan, [benchmark.engine for benchmark in subject.measures.all])
    scenario = FineTune(
        plan=plan,
        benchmarks=subject.measures.search,
        targets=subject.measures.sealed if subject.measures.pooled else None,
        limit=settings.benchmark_limit,
        timeout=settings.benchmark_timeout,
        cache=workspace.scores,
        weights=subject.weights,
        samples=settings.benchmark_samples,
        judges=choose_judges(settings, subject.measures.all, workspace.scores, budget.money),
        work=data_work(
            settings,
            data.recognise(subject.data_path, subject.columns),
            subject.measures.all,
            paths,
            runner,
            journal.state.llama_factory,
            budget.money,
            view.say,
            asks=model is not None,
            replay=options.replay,
        ),
    )
    proposer = make_proposer(
        model,
        settings,
        subject,
        scenario,
        machine,
        budget,
        paths,
        view.say,
    )
    study = Study(paths.root.name, paths, journal, runner, view, budget)
    workspace.enter(new_entry(paths.root.name, subject.identity, paths.root))
    budget.start()
    study.start_call(
        proposer=proposer.name, timeout=options.timeout, loop_n=trials, step_n=stages, gpus=len(machine.gpus)
    )
    try:
        output = workspace.output(study.name)
        yield Lab(study=study, proposer=proposer, scenario=scenario, output=output, confirm=options.confirm)
        remove_images(study, runner, workspace, settings, view.say)
    finally:
        view.close()
        show(journal, paths, subject.info.path)
        journal.close()


def report(study: str | None) -> int:
    """Print what a study found so far, and write its report.md; the one last worked on where none is named."""
    settings = load({}, None, os.environ, Path.cwd())
    workspace = Workspace(settings.workspace())
    entry = _find(workspace.root, workspace.index(), study)
    paths = StudyPaths(Path(entry.path))
    if not paths.journal.exists():
        raise UsageError(f"{paths.journal} is gone", "the study was moved or deleted; name another one")
    model = hub.find("model", entry.model, workspace.root)
    show(Journal(paths.journal), paths, str(model.path) if model else None, holder(paths))
    return 0


def _find(root: Path, entries: list[IndexEntry], study: str | None) -> IndexEntry:
    studies = sorted((entry for entry in entries if entry.kind == "study"), key=_last_touched)
    fitting = [entry for entry in studies if study is None or entry.id.startswith(study)]
    if not fitting:
        known = ", ".join(entry.id for entry in studies) or "none yet"
        where = f"no study {study!r}" if study else "no study"
        raise UsageError(f"there is {where} in {root}", f"studies: {known}; python agent/loop.py begins one")
    if study is not None and len(fitting) > 1 and study not in [entry.id for entry in fitting]:
        raise UsageError(f"{study!r} could be {', '.join(entry.id for entry in fitting)}", "write more of its name")
    return next((entry for entry in fitting if entry.id == study), fitting[-1])


def _last_touched(entry: IndexEntry) -> float:
    journal = StudyPaths(Path(entry.path)).journal
    return journal.stat().st_mtime if journal.exists() else 0.0


def show(journal: Journal, paths: StudyPaths, base_path: str | None, working: str | None = None) -> None:
    """Write report.md and print the summary."""
    if journal.state.identity is None:
        return
    found = study_report(journal, paths.root, working)
    written = write_report(found, paths.root, base_path=base_path)
    tty = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = min(120, shutil.get_terminal_size((100, 24)).columns) if tty else 100
    print(summary(found, width=width, color=tty, report_path=str(written), base_path=base_path), flush=True)


# The parts


def _settings(options: LoopOptions) -> Settings:
    config = Path(options.config) if options.config else None
    settings = load(options.settings(), config, os.environ, Path.cwd())
    settings.export(os.environ)  # HF_TOKEN and the like, for the hub's client
    return settings


def choose_runner(settings: Settings, say: Say, *, unsafe_local: bool = False) -> Runner:
    """The runner asked for, or docker if an engine answers; says which and why.

    Args:
        unsafe_local: The local runner may run code that a language model wrote (--unsafe-local).
    """
    from agent.run import containers
    from agent.run.environments import Environments
    from agent.run.local import LocalRunner
    from agent.run.lock import Limits

    why_not = None
    if settings.runner == "docker" or (settings.runner == "auto" and (why_not := containers.docker_answers()) is None):
        say("runner: docker" + (", because an engine answers" if settings.runner == "auto" else ""))
        let_jobs_read()
        return DockerRunner(containers.connect(), limits=Limits(disk=settings.trial_disk_bytes), gpus=settings.gpus)
    say("runner: local" + (f", because {why_not}" if why_not else ""))
    named = settings.origin("environments") != "default"
    environments = Environments(settings.environments if named else None)
    if unsafe_local:
        say("--unsafe-local: code that a language model wrote would run with all your rights")
    return LocalRunner(environments, disk_limit=settings.trial_disk_bytes, gpus=settings.gpus, unsafe=unsafe_local)


def open_journal(paths: StudyPaths, identity: Identity) -> Journal:
    """The study's journal, begun where it is new."""
    journal = Journal(paths.journal)
    if journal.state.identity is None:
        journal.append(StudyOpened(at=journal.now(), format=FORMAT, study=paths.root.name, identity=identity))
    elif identity_hash(journal.state.identity) != identity_hash(identity):
        raise StudyError(f"{paths.journal} belongs to another study", "move that directory away")
    return journal


def training_plan(settings: Settings, subject: Subject, machine: Hardware, paths: StudyPaths, say: Say) -> TrainingPlan:
    """What is the same for all trainings; writes the study's copy of the data, without the benchmarks' questions."""
    recognised = data.recognise(subject.data_path, subject.columns)
    prepared = contamination.prepare(
        recognised, paths.data, subject.measures.all, settings.contamination, paths.contamination, say
    )
    plan = plan_on(
        machine,
        settings,
        subject.info,
        prepared,
        cutoff_len=settings.cutoff_len,
        template=settings.template,
        max_epochs=settings.max_epochs,
    )
    footprint.require_possible(plan)
    return plan


def ready(
    runner: Runner, journal: Journal, paths: StudyPaths, plan: TrainingPlan, settings: Settings, say: Say
) -> tuple[Runner, TrainingPlan]:
    """Build what is missing, and take the LLaMA-Factory that the study trains with."""
    runner.ready("train", say)
    trainer = llama_factory.settle(
        runner,
        journal,
        paths,
        wanted=settings.update_llama_factory,
        needed=training.config(Recipe(train={}), plan, paths.root / "model", mini=False),
        say=say,
    )
    runner.ready("bench", say)
    return trainer.runner, msgspec.structs.replace(plan, arguments=trainer.arguments)


def make_proposer(
    model: ChatModel | Replay | None,
    settings: Settings,
    subject: Subject,
    scenario: FineTune,
    machine: Hardware,
    budget: Budget,
    paths: StudyPaths,
    say: Say,
) -> Proposer:
    """The proposer for what may be trained: the language model where there is one, with TPE for numbers if so set."""
    space, seed = default_space(), settings.proposer_seed
    if model is None:
        alone = Random if settings.proposer == "random" else Tpe
        return alone(space, scenario.problems, seed)
    brief = study_brief(
        subject.dataset,
        subject.model,
        scenario.plan,
        subject.measures.all,
        machine,
        lambda: left_in_words(budget),
        paths,
        work=scenario.work,
    )
    allowed = allowed_keys(scenario.plan.arguments, scenario.plan.bounds)
    transcript = None if isinstance(model, Replay) else paths.transcript  # what is replayed is no new call
    author = writer.Writer(
        model,
        brief,
        scenario.problems,
        allowed,
        transcript=transcript,
        policy=asked_for(space) if settings.proposer == "hybrid" else policy.direct,
        tokens=settings.context_tokens,
        say=say,
    )
    return Hybrid(author, space, scenario.problems, seed, brief.defaults) if settings.proposer == "hybrid" else author


def remove_images(study: Study, runner: Runner, workspace: Workspace, settings: Settings, say: Say) -> None:
    """FT_DOCKER_ENABLE_CACHE=False: a study that is over gives its images back, unless another one is at work."""
    if settings.docker_enable_cache or not study.over or not isinstance(runner, DockerRunner):
        return
    others = [entry for entry in workspace.index() if entry.kind == "study" and entry.id != study.name]
    if busy := next((entry.id for entry in others if holder(StudyPaths(Path(entry.path)))), None):
        say(f"FT_DOCKER_ENABLE_CACHE=False: the images are kept, as the study {busy} is at work")
        return
    try:
        freed, needed = runner.remove_images()
    except MachineError as error:  # what was found is safe, and the images are in nobody's way
        say(f"FT_DOCKER_ENABLE_CACHE=False: {error.message}")
        return
    if needed:
        say(f"FT_DOCKER_ENABLE_CACHE=False: kept, as another study needs them: {', '.join(needed)}")
    if freed or not needed:
        say(f"FT_DOCKER_ENABLE_CACHE=False: the study's images are removed, which freed {amount(freed)}")


def _plan_rows(
    subject: Subject,
    plan: TrainingPlan,
    settings: Settings,
    machine: Hardware,
    runner: str,
    proposer: str,
    trials: int | None,
    stages: int | None,
    options: LoopOptions,
    paths: StudyPaths,
) -> list[tuple[str, str]]:
    limits = [count(trials, "trial") if trials else "", count(stages, "stage") if stages else ""]
    limits.append(duration(options.timeout) if options.timeout is not None else "")
    limits += limits_in_words(settings, machine)
    dropped = f", {plan.data.dropped:,} empty rows dropped" if plan.data.dropped else ""
    return [
        ("data set", f"{subject.dataset}: {plan.data.rows:,} rows ({plan.data.format}){dropped}"),
        ("model", f"{subject.model}: {subject.info.parameters / 1e6:,.1f} M parameters, {plan.device}"),
        ("benchmarks", subject.measures.names),
        ("machine", f"{machine}; runner {runner}"),
        ("proposer", proposer),
        ("budget", ", ".join(filter(None, limits)) or "no limit: runs until Ctrl-C, or until nothing can be better"),
        ("study", str(paths.root)),
    ]


@contextmanager
def forgotten_if_refused(paths: StudyPaths) -> Iterator[None]:
    """Remove a new study that is refused before its first call begins, but for what the refusal names."""
    new = not paths.journal.exists()
    try:
        yield
    except UsageError as error:
        if new and paths.journal.exists() and not Journal(paths.journal).state.calls:
            for place in [place for place in paths.root.iterdir() if str(place) not in str(error)]:
                shutil.rmtree(place) if place.is_dir() else place.unlink()
            if not any(paths.root.iterdir()):
                paths.root.rmdir()
        raise


@contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """SIGTERM stops a call as Ctrl-C does: the stage is recorded, the job ended."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
