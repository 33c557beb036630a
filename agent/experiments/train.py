"""`ftloop train`: one training that a person asked for, in full."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from agent.budget import Budget
from agent.errors import RunFailed, TrialFailed, UsageError
from agent.experiments import single, snapshots
from agent.experiments.arguments import EvalArguments, TrainArguments, fields
from agent.experiments.fields import Field
from agent.experiments.laboratory import AUTHOR, Laboratory, alone, recorded
from agent.experiments.places import HIDDEN, Places, model_name, places, run_id, tracker_name
from agent.experiments.resolve import Resolved, resolve
from agent.experiments.sources import Values
from agent.journal import DataScanned, Journal, TrialEnded
from agent.records import Checked, Checkpoint, Identity, Proposal
from agent.store import identity_hash
from agent.study import StageBench, Study
from scenarios import Bench
from scenarios.finetune import contamination, data, preferences, template_check
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.data import Prepared
from scenarios.finetune.files import sync, sync_tree
from scenarios.finetune.models import inspect
from scenarios.finetune.registry import Engine
from scenarios.finetune.training import TrainingPlan

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json", "checkpoint-*")
"""What would make other weights of those that replace them, in a directory that may hold other things too."""


def train(
    lab: Laboratory, known: Mapping[str, Field], values: Values, arguments: TrainArguments
) -> tuple[Places, Checkpoint]:
    """Train, unless that was done; where everything lies, and what was trained.

    Raises:
        RunFailed: The training failed. UsageError: It cannot be done, or another run has this name.
    """
    base = lab.base_model(arguments.model_name_or_path)
    chosen = data.recognise(lab.dataset(arguments.dataset), arguments.columns)
    run = resolve(
        known,
        values,
        arguments,
        model=inspect(base),
        machine=lab.machine,
        settings=lab.settings,
        tasks=lab.tasks(arguments.tasks, arguments.dataset),
        stages=preferences.stages(chosen.columns),
    )
    model = arguments.model_name or model_name(arguments.model_name_or_path)
    where = places(model, arguments.run_name, run.method, arguments.output_dir, "train", lab.cwd)
    identity = Identity(
        dataset=arguments.dataset,
        dataset_fingerprint=data.fingerprint_of(chosen),
        model=arguments.model_name_or_path,
        model_fingerprint=lab.weights(base),
        benchmarks=tuple(run.values["tasks"]),
        limit=arguments.limit,
        generation={"author": AUTHOR},
    )
    tasks = lab.benchmarks(arguments.tasks, arguments.dataset)
    lab.runner.ready("train", lab.view.say)
    require_free(where)
    with alone(where):
        text = snapshots.snapshot(known, run.values, "train")
        claim(where, text, identity, overwrite=arguments.overwrite)
        snapshots.write(where.config("train"), text)
        run = _with_data(lab, run, where, _prepared(lab, chosen, where, tasks, arguments), tasks)
        tracker = tracker_name(model, arguments.run_name, arguments.stage)
        with recorded(lab, where, identity, run_id(tracker, where.root)) as study:
            checkpoint = trained(
                study, where, run, arguments.description, checkpoints="save_strategy" in values.origins
            )
        _offer_evaluation(where, run, model, checkpoint, lab.cwd)
    return where, checkpoint


def _with_data(
    lab: Laboratory, run: Resolved, where: Places, prepared: Prepared, tasks: Sequence[Benchmark]
) -> Resolved:
    """The run with its data; UsageError where a template that was named renders them otherwise than evaluation will."""
    plan = msgspec.structs.replace(run.plan, data=prepared)
    if plan.template is not None:
        _check_template(lab, where, plan, [benchmark.engine for benchmark in tasks] or ["lm_eval"])
    return msgspec.structs.replace(run, plan=plan)


def _check_template(lab: Laboratory, where: Places, plan: TrainingPlan, engines: Sequence[Engine]) -> None:
    """As `template_check.check`, in this command's words; without it nobody would notice."""
    lab.runner.ready("bench", lab.view.say)
    name = f"{where.root.parent.name}-templates"
    bench = StageBench(where.paths.templates, name, {"run": name}, lab.runner, Budget(), lab.view)
    try:
        template_check.check(bench, plan, engines)
    except UsageError as error:
        error.message, error.hint = (text.replace("FT_TEMPLATE", "template") for text in (error.message, error.hint))
        raise


def _prepared(
    lab: Laboratory, chosen: data.Dataset, where: Places, tasks: Sequence[Benchmark], arguments: TrainArguments
) -> Prepared:
    """The data as the trainer reads them, without or with the rows that hold questions of the tasks."""

    def ours(text: str) -> str:
        return text.replace("FT_CONTAMINATION", "contamination")

    def say(line: str) -> None:
        lab.view.say(ours(line))

    try:
        return contamination.prepare(
            chosen, where.paths.data, tasks, arguments.contamination, where.paths.contamination, say
        )
    except UsageError as error:
        error.message, error.hint = ours(error.message), ours(error.hint)
        raise


def require_free(where: Places) -> None:
    """UsageError where files that are no run's lie in the place of the weights."""
    ours = where.paths.journal.exists() or where.config("train").exists()
    if not ours and where.weights.exists() and any(path.name != HIDDEN for path in where.weights.iterdir()):
        raise UsageError(
            f"{where.weights} holds files that are no run's of ftloop", "move them away, or choose another output_dir"
        )


def claim(where: Places, text: str, identity: Identity, *, overwrite: bool) -> None:
    """Make sure that what lies in a run's place is this run, begun earlier, or nothing.

    Args:
        text: Its snapshot. overwrite: Remove whatever another run left.

    Raises:
        UsageError: Another run is there.
    """
    if overwrite:
        _remove(where)
        return
    state, file = Journal(where.paths.journal).state, where.config("train")
    in_hand = any(trial == len(state.trials) + 1 for trial, _ in state.attempts)  # else all that was tried has failed
    if in_hand and (found := snapshots.differences(file.read_text("utf-8") if file.exists() else "", text)):
        shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
        raise UsageError(
            f"{where.root} is another run ({shown})", "give this one another run_name, or replace it with --overwrite"
        )
    if state.identity is not None and identity_hash(state.identity) != identity_hash(identity):
        raise UsageError(
            f"{where.root} was trained on other data, or from another model, of the same name",
            "give this run another run_name, or replace it with --overwrite",
        )


def _remove(where: Places) -> None:
    """Remove all that a run left, but for the lock that this process holds."""
    for path in where.paths.root.iterdir():
        if path != where.paths.lock:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (where.config("eval"), where.script):
        path.unlink(missing_ok=True)
    shutil.rmtree(where.root / "eval", ignore_errors=True)
    if where.weights != where.root:
        shutil.rmtree(where.weights, ignore_errors=True)
    else:
        for path in [path for pattern in _WEIGHTS for path in where.weights.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    where.config("train").unlink(missing_ok=True)  # last: after a kill it says whose files these are


def trained(study: Study, where: Places, run: Resolved, description: str, *, checkpoints: bool) -> Checkpoint:
    """The weights of this run, from an earlier call or trained now.

    Args:
        checkpoints: Keep those that were saved on the way; else they were only a means.
    """

    def work(bench: Bench) -> Checkpoint:
        made = single.train_once(bench, run.recipe, run.plan)
        return _placed(made, bench.directory, where.weights, checkpoints=checkpoints)

    def check(_: Bench) -> Checked:
        single.require(run.recipe, run.plan)
        return Checked(changed=tuple(run.recipe.train))

    found = run.plan.data.contamination
    if found is not None and found != study.journal.state.contamination:
        study.journal.append(DataScanned(at=study.journal.now(), contamination=found))
    number = study.next_trial()
    proposal = Proposal(hypothesis=description, change="", recipe=run.recipe, author=AUTHOR)
    try:
        study.stage(number, "propose", lambda _: proposal, Proposal)
        study.stage(number, "check", check, Checked)
        return study.stage(number, "train", work, Checkpoint)
    except TrialFailed as failed:
        call = len(study.journal.state.calls)
        study.journal.append(TrialEnded(at=study.journal.now(), call=call, trial=number, lesson=""))
        log = study.paths.stage(number, "train") / "train.log"
        raise RunFailed(
            f"{where.root}: {failed.kind}: {failed.reason}",
            f"the log: {log}" if log.exists() else "change the arguments",
        ) from None


def _placed(made: Checkpoint, stage: Path, weights: Path, *, checkpoints: bool) -> Checkpoint:
    """The same weights where people look for them, with the trainer's YAML and log beside them."""
    weights.mkdir(parents=True, exist_ok=True)
    if not checkpoints:
        for path in Path(made.path).glob("checkpoint-*"):
            shutil.rmtree(path)
    for path in Path(made.path).iterdir():
        target = weights / path.name
        if target.is_dir():  # a kill came in the middle of this
            shutil.rmtree(target)
        if path.is_file():
            path.chmod(0o644)  # safetensors writes 0600, and evaluation may run as another user
        path.replace(target)
    for name in ("train.yaml", "train.log"):
        shutil.copyfile(stage / name, weights / name)
    sync_tree(weights)
    sync(weights.parent)
    return msgspec.structs.replace(made, path=str(weights))


def _offer_evaluation(where: Places, run: Resolved, model: str, checkpoint: Checkpoint, cwd: Path) -> None:
    """Write eval_config.yaml and eval.sh for what was trained."""
    known = fields(EvalArguments)
    weights = "adapter_name_or_path" if checkpoint.adapter else "model_name_or_path"
    values = {name: run.values.get(name, one.default) for name, one in known.items()} | {
        "model_name_or_path": run.values["model_name_or_path"] if checkpoint.adapter else str(where.weights),
        "adapter_name_or_path": str(where.weights) if checkpoint.adapter else None,
        "model_name": model,
        "finetuning_type": run.method,
        "output_dir": run.values["output_dir"],
    }
    if not where.config("eval").exists():
        snapshots.write(where.config("eval"), snapshots.snapshot(known, values, "eval"))
    snapshots.write_script(where.script, where.config("eval"), cwd, (weights, where.weights))
