"""`make bench`: one JSON object a line, {"name", "value", "unit", "goal"}. Run it on a quiet machine."""

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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


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


BENCHMARKS: tuple[tuple[Callable[[], float | None], str, float], ...] = (
    (help_s, "s", 0.6),
    (own_ms_per_trial, "ms", 100.0),
    (journal_10k_load_s, "s", 1.0),
    (docker_job_ratio, "ratio", 1.3),
)

if __name__ == "__main__":
    for measure, unit, goal in BENCHMARKS:
        if (value := measure()) is not None:
            line = {"name": measure.__name__, "value": round(value, 3), "unit": unit, "goal": goal}
            print(json.dumps(line), flush=True)
