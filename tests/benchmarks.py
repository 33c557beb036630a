"""`make bench`: one JSON object a line, {"name", "value", "unit", "goal"}. Run it on a quiet machine.

The figures on the acceptance rule (tests/calibration.py) also say where they are worst, and what the rule "the higher
mean wins" does there; they take four minutes. `python tests/benchmarks.py NAME ...` prints only these.
`proposers`, which trains for half an hour and more, is measured by name alone (tests/proposers.py).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # not tests/, whose docker/ would be taken for the SDK


def help_s() -> float:
    """Seconds until `--help` has answered; the best of five."""

    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "agent/loop.py", "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    return min(once() for _ in range(5))


def own_ms_per_trial() -> float:
    """Milliseconds that a trial costs beyond its jobs: journal, checks, the TPE proposer, records."""
    from agent.loop import run_call
    from tests import toy

    trials = 30
    with (
        tempfile.TemporaryDirectory() as root,
        open(os.devnull, "w") as devnull,  # noqa: PTH123
        toy.lab(Path(root), proposer=toy.searching(), runner=toy.Instant(), loop_n=trials, out=devnull) as lab,
    ):
        lab.proposer.propose(lab.study.history(), ())  # the first call imports Optuna
        started = time.perf_counter()
        run_call(lab)
        return (time.perf_counter() - started) / trials * 1000


def journal_10k_load_s() -> float:
    """Seconds to replay a journal of 10,000 trials; the best of three."""
    from agent.journal import Journal
    from tests.test_journal import opened, whole_trial, write

    def once(path: Path) -> float:
        started = time.perf_counter()
        assert len(Journal(path).state.trials) == 10_000
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "journal.jsonl"
        write(path, [*opened(), *(event for number in range(1, 10_001) for event in whole_trial(number))])
        return min(once(path) for _ in range(3))


def docker_job_ratio() -> float | None:
    """A null job by the docker runner, in plain `docker run`s of the same image; the median of nine pairs.

    The plain one has no network either: what an engine spends on a network is no cost of ours, in either direction.
    """
    from agent.run.containers import DockerRunner, connect, docker_answers
    from tests.conformance.images import make_image
    from tests.conformance.runners import python_job

    if problem := docker_answers() or (None if shutil.which("docker") else "there is no docker command"):
        print(f"docker_job_ratio is left out: {problem}", file=sys.stderr)
        return None
    client = connect()
    image = make_image(client)
    runner = DockerRunner(client, {"train": image})
    argv = ("python", "-I", "-S", "-c", "pass")

    def seconds(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory() as root:
        job = python_job(Path(root), "", argv=argv)
        plain = ["docker", "run", "--rm", "--network", "none", image, *argv]
        pairs = [
            (
                seconds(lambda: runner.run(job)),
                seconds(lambda: subprocess.run(plain, check=True, stdout=subprocess.DEVNULL)),
            )
            for _ in range(10)
        ]
    client.close()
    return statistics.median(ours / theirs for ours, theirs in pairs[1:])  # the first pair warms up


SCAN = """
import resource, sys, time
from pathlib import Path
from scenarios.finetune.contamination import scan
from scenarios.finetune.benchmarks import resolve

root, started = Path(sys.argv[1]), time.perf_counter()
(benchmark,) = resolve(["gsm8k"], root, Path)
found = scan(root / "train.jsonl", [benchmark])[benchmark.name]
assert len({held.row for held in found}) == 1000, "one row in a thousand was planted"
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@cache
def _million_rows() -> tuple[float, float]:
    """Seconds and GiB to search a million rows, made of 20,000 word problems, for the questions of one benchmark."""
    from tests.word_problems import problems

    asked = list(islice(problems(2), 1319))
    base = list(islice(problems(1), 20_000))
    with tempfile.TemporaryDirectory() as folder:
        laid = Path(folder) / "benchmarks/gsm8k"
        laid.mkdir(parents=True)
        for split in ("train", "test"):
            rows = (json.dumps({"question": question, "answer": answer}) for question, answer in asked)
            (laid / f"{split}.jsonl").write_text("\n".join(rows))
        with (Path(folder) / "train.jsonl").open("w") as file:
            for number in range(1_000_000):
                question, answer = base[number % len(base)] if number % 1000 else asked[number // 1000]
                file.write(json.dumps({"prompt": question, "response": f"{answer}, {number}"}) + "\n")
        done = subprocess.run(
            [sys.executable, "-c", SCAN, folder], cwd=ROOT, check=True, capture_output=True, text=True
        )
    seconds, gib = map(float, done.stdout.split())
    return seconds, gib


def contamination_1m_s() -> float:
    """Seconds to search a million training rows for a benchmark's questions."""
    return _million_rows()[0]


def contamination_1m_gib() -> float:
    """Memory that this takes at its peak."""
    return _million_rows()[1]


BENCHMARKS: tuple[tuple[Callable[[], float | None], str, float], ...] = (
    (help_s, "s", 0.6),
    (own_ms_per_trial, "ms", 100.0),
    (journal_10k_load_s, "s", 1.0),
    (docker_job_ratio, "ratio", 1.3),
    (contamination_1m_s, "s", 120.0),
    (contamination_1m_gib, "GiB", 2.0),
)


def main(names: list[str]) -> None:
    """Print the figures of these names; all of them where there is none."""
    from tests import calibration

    for measure, unit, goal in BENCHMARKS:
        if (not names or measure.__name__ in names) and (value := measure()) is not None:
            _print(measure.__name__, value, unit, goal)
    for simulate, goal in calibration.FIGURES.items():
        if not names or simulate.__name__ in names:
            found = simulate()
            _print(simulate.__name__, found.value, "share", goal, worst=found.worst, naive=round(found.naive, 3))
    if "proposers" in names:
        _print_proposers()


def _print_proposers() -> None:
    """The median best score of random search, TPE and the hybrid; the goal of each is what random search reaches."""
    from tests import proposers

    with tempfile.TemporaryDirectory() as folder:
        found = proposers.measure(Path(folder))
    medians = proposers.medians(found)
    for name, value in medians.items():
        seeds = ", ".join(f"{one.best[-1]:.3f}" for one in found if one.proposer == name)
        _print(f"proposers_{name}", value, "score", medians["random"], seeds=seeds)


def _print(name: str, value: float, unit: str, goal: float, **more: str | float) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, "goal": goal, **more}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
