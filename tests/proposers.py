"""Random search, TPE and the hybrid on the demo, at the same number of trainings: whose best model is better?

python tests/proposers.py DIRECTORY [--trials 9] [--seeds 5] [--epochs 2] [--at-once 1]

The hybrid's language model is a stub behind real HTTP that chooses structures only: a method and a scheduler, in an
order drawn by the seed; it never sets a number. Trainings and scores are real; their programs are forked from one that
has imported its libraries, which takes half the time. A study that is there already is not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from agent.journal import Journal  # noqa: E402
from agent.records import Scores, Sealed  # noqa: E402
from agent.run import EnvironmentName  # noqa: E402
from agent.run.environments import Environments  # noqa: E402
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer  # noqa: E402
from tests.warm import warm_python  # noqa: E402

PROPOSERS = ("random", "tpe", "hybrid")
METHODS = ("full", "lora")
SCHEDULERS = ("cosine", "linear", "constant_with_warmup")
IMPORTS: dict[EnvironmentName, tuple[str, ...]] = {
    "train": ("llamafactory.train.tuner",),
    "bench": ("lm_eval.models.huggingface", "lm_eval.tasks", "datasets", "peft"),
}
SHARED = ("datasets", "models", "benchmarks", "scores")
"""What of a workspace is the same for all studies: the base is scored once."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one study.

    Attributes:
        best: The kept model's score on the search half, after each trial; the base's while nothing was kept.
        test: The kept model's score on the sealed half.
    """

    proposer: str
    seed: int
    best: list[float]
    test: float
    failed: int
    minutes: float


def structures(seed: int) -> Callable[[ChatRequest], ChatAnswer]:
    """A stub that proposes method and scheduler, each combination once before any comes again."""
    pairs = list(itertools.product(METHODS, SCHEDULERS))
    random.Random(seed).shuffle(pairs)
    turns = itertools.cycle(pairs)

    def answer(request: ChatRequest) -> ChatAnswer:
        if '"lesson"' in json.dumps(request.body.get("response_format", {})):
            return ChatAnswer(json.dumps({"lesson": "Nothing to add."}))
        method, scheduler = next(turns)
        draft = {
            "hypothesis": f"{method} tuning with the {scheduler} schedule does well.",
            "reason": "It was not tried.",
            "expected": "More than the base.",
            "change": f"{method}, {scheduler}",
            "parent": None,
            "train": {"finetuning_type": method, "lr_scheduler_type": scheduler},
        }
        return ChatAnswer(json.dumps(draft))

    return answer


@contextmanager
def warm_environments(directory: Path) -> Iterator[Path]:
    """A directory of environments, as FT_ENVIRONMENTS names one, whose programs have their imports behind them."""
    real = Environments()
    with ExitStack() as stack:
        for name, modules in IMPORTS.items():
            real.ready(name, print)
            python = real.python(name)
            place = directory / python.parent.parent.name
            (place / "bin").mkdir(parents=True)
            asking = place / "asking"
            asking.mkdir()
            program = stack.enter_context(warm_python(python, asking, *modules))
            (place / "bin" / "python").symlink_to(program)
            for script in python.parent.glob("llamafactory-cli"):
                ours = place / "bin" / script.name
                ours.write_text(f'#!/bin/sh\nexec "{program}" "{script}" "$@"\n')
                ours.chmod(0o755)
            (place / ".complete").touch()
        yield directory


def study(root: Path, environments: Path, proposer: str, seed: int, trials: int, epochs: float) -> Found:
    """One demo study in a workspace of its own; what came of it."""
    home = root / f"{proposer}-{seed}"
    if not (home / "done").exists():
        shutil.rmtree(home, ignore_errors=True)
        _share(next(iter(sorted(root.glob("*/done"))), None), home / "lab")
        with ChatServer(structures(seed)) as server, (home / "log").open("w") as log:
            settings = {
                "FT_FILE_PATH": str(home / "lab"),
                "FT_ENVIRONMENTS": str(environments),
                "FT_MAX_EPOCHS": str(epochs),
                "FT_CHAT_API_BASE": server.url,
                "FT_CHAT_MODEL": "stub",
            }
            command = [sys.executable, "agent/loop.py", "--dataset", "demo/reverse", "--runner", "local"]
            command += ["--proposer", proposer, "--seed", str(seed), "--loop_n", str(trials)]
            inherited = {n: v for n, v in os.environ.items() if not n.startswith(("FT_", "OPENAI_"))}
            subprocess.run(command, cwd=ROOT, env=inherited | settings, stdout=log, stderr=log, check=True)
        (home / "done").touch()
    return found(home / "lab", proposer, seed)


def found(lab: Path, proposer: str, seed: int) -> Found:
    """What the study's journal says."""
    (path,) = (lab / "studies").glob("*/journal.jsonl")
    state = Journal(path).state
    base = state.result(0, "bench", Scores)
    assert base is not None
    best, means = base.mean, []
    for trial in state.trials:
        if trial.verdict == "better" and trial.mean is not None:
            best = trial.mean
        means.append(best)
    sealed = state.result(state.best, "test", Sealed) if state.best is not None else None
    return Found(
        proposer=proposer,
        seed=seed,
        best=means,
        test=sealed.winner[0].mean if sealed else base.mean,
        failed=sum(trial.failure is not None for trial in state.trials),
        minutes=state.seconds / 60,
    )


def _share(done: Path | None, lab: Path) -> None:
    """Take over from a finished study what is the same in all, the check of the templates included."""
    lab.mkdir(parents=True)
    if done is None:
        return
    other = done.parent / "lab"
    for name in SHARED:
        if (other / name).exists():
            shutil.copytree(other / name, lab / name)
    for templates in other.glob("studies/*/templates"):
        shutil.copytree(templates, lab / templates.relative_to(other))


def compare(
    root: Path, environments: Path, trials: int, seeds: int, epochs: float, at_once: int = 1
) -> Iterator[Found]:
    """All studies, one seed of all proposers after the other."""
    wanted = [(proposer, seed) for seed in range(seeds) for proposer in PROPOSERS]

    def run(one: tuple[str, int]) -> Found:
        return study(root, environments, one[0], one[1], trials, epochs)

    yield run(wanted[0])  # the others take over what it made
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(run, wanted[1:])


def measure(
    root: Path,
    trials: int = 9,
    seeds: int = 5,
    epochs: float = 2.0,
    at_once: int = 1,
    say: Callable[[Found], None] = lambda _: None,
) -> list[Found]:
    """All studies under `root`, a directory with a short path; `say` is told each as it is done.

    Args:
        epochs: Most epochs. At the demo's own three so many recipes reach full marks that nothing is left to tell.
    """
    warm = root / "environments"
    shutil.rmtree(warm, ignore_errors=True)
    all_found = []
    with warm_environments(warm) as environments:
        for one in compare(root, environments, trials, seeds, epochs, at_once):
            say(one)
            all_found.append(one)
    return all_found


def medians(all_found: list[Found], trial: int | None = None) -> dict[str, float]:
    """Each proposer's median over the seeds of what was kept after a trial, counted from 1; the last one by default."""
    index = -1 if trial is None else trial - 1
    return {name: statistics.median(f.best[index] for f in all_found if f.proposer == name) for name in PROPOSERS}


def table(all_found: list[Found]) -> list[str]:
    """Medians over the seeds, as Markdown."""
    trials = len(all_found[0].best)
    steps = sorted({max(1, trials // 3), max(1, 2 * trials // 3), trials})
    by_step = [medians(all_found, step) for step in steps]
    head = ["proposer", *(f"kept after {step}" for step in steps), "its sealed test", "kept, by seed", "failed"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in PROPOSERS:
        mine = [one for one in all_found if one.proposer == name]
        test = statistics.median(one.test for one in mine)
        figures = [f"{figure:.3f}" for figure in (*(step[name] for step in by_step), test)]
        each = ", ".join(f"{one.best[-1]:.3f}" for one in mine)
        lines.append(f"| {name} | {' | '.join(figures)} | {each} | {sum(one.failed for one in mine)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--trials", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--at-once", type=int, default=1)
    options = parser.parse_args()
    options.root.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name != "root"}
    all_found = measure(
        options.root, **settings, say=lambda one: print(json.dumps(msgspec.to_builtins(one)), flush=True)
    )
    print("\n".join(table(all_found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
