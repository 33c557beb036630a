"""The command lines of `ftloop train` and `ftloop eval`. Imports nothing heavy: --help answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from agent.experiments import sources
from agent.experiments.arguments import EvalArguments, TrainArguments, build, fields
from agent.experiments.fields import Field
from agent.experiments.places import require_name
from agent.experiments.sources import Values

Kind = TypeVar("Kind", TrainArguments, EvalArguments)

TRAIN = """\
Trains a model as a person says. What differs from the defaults stands in a YAML file, on the command line, or in both;
the command line wins, and the environment has no say. docs/experiments.md has a sample.

  ftloop train --config first.yaml --run_name second --learning_rate 2e-4 --lr_scheduler_kwargs.min_lr_rate 0.1
"""
TRAIN_CODES = """\
what is written:
  outputs/{model_name}/{run_name}/{finetuning_type}/train              the weights
  outputs/{model_name}/{run_name}/{finetuning_type}/train_config.yaml  every argument; --config takes it
  outputs/{model_name}/{run_name}/{finetuning_type}/eval.sh            evaluates them, as eval_config.yaml says
The same command again continues a run that was stopped. Another run of the same name is refused without --overwrite.

exit codes:
  0    trained, now or before
  2    an argument or a setting is wrong, or another run has this name
  3    the machine cannot: engine gone, disk full
  4    another process works on this run
  6    the training failed; the message says why
  130  interrupted with Ctrl-C; the same command begins the training again
"""
EVAL = """\
Scores a model, or an adapter on a model, on benchmarks. All of each benchmark is asked, or its first --limit questions.
No study is concerned by it: its sealed half stays sealed to the study, whatever a person has seen of it.

  ftloop eval --config outputs/tiny/first/lora/eval_config.yaml --tasks gsm8k,math
"""
EVAL_CODES = """\
what is written:
  outputs/{model_name}/{run_name}/{finetuning_type}/eval/{tasks}/results.json  mean, n, stderr, interval, unscored
  outputs/{model_name}/{run_name}/{finetuning_type}/eval_config.yaml, eval.sh  the same again
Results that are there are kept; those of another evaluation in their place are refused without --overwrite.

exit codes:
  0    scored, now or before
  2    an argument or a setting is wrong, or another evaluation's results are there
  3    the machine cannot: engine gone, disk full, judge out of reach
  4    another process works on this run
  6    scoring failed; the message says why
  130  interrupted with Ctrl-C
"""


def train(argv: Sequence[str], kind: type[TrainArguments] = TrainArguments, cwd: Path | None = None) -> int:
    """Run `ftloop train`; `kind` may add arguments to those that there are."""
    cwd = cwd or Path.cwd()
    known, values, arguments = _given(kind, argv, cwd, prog="ftloop train", description=TRAIN, epilog=TRAIN_CODES)
    if arguments.dry_run:
        sources.show(values)
        return 0
    from agent.experiments.laboratory import laboratory
    from agent.experiments.train import train

    with laboratory(arguments.runner, cwd) as lab:
        where, checkpoint = train(lab, known, values, arguments)
    print(f"trained: {where.weights} ({checkpoint.steps} steps, {checkpoint.seconds:.0f} s)")
    print(f"evaluate it: {where.script}")
    return 0


def evaluate(argv: Sequence[str], kind: type[EvalArguments] = EvalArguments, cwd: Path | None = None) -> int:
    """Run `ftloop eval`; `kind` may add arguments to those that there are."""
    cwd = cwd or Path.cwd()
    known, values, arguments = _given(kind, argv, cwd, prog="ftloop eval", description=EVAL, epilog=EVAL_CODES)
    if arguments.dry_run:
        sources.show(values)
        return 0
    from agent.experiments.evaluate import evaluate
    from agent.experiments.laboratory import laboratory
    from agent.report.words import score

    with laboratory(arguments.runner, cwd) as lab:
        file, scores = evaluate(lab, known, values, arguments)
    for one in scores.scores:
        print(f"{one.benchmark}: {score(one)}")
    print(f"results: {file}")
    return 0


def _given(kind: type[Kind], argv: Sequence[str], cwd: Path, **told: str) -> tuple[dict[str, Field], Values, Kind]:
    """What can be said, what was said, and the typed arguments of it."""
    known = fields(kind)
    values = sources.read(known, argv, cwd, sources.make_parser(known, **told))
    arguments = build(kind, values.values)
    if arguments.output_dir is None:
        require_name("run_name", arguments.run_name)
    return known, values, arguments
