"""The embedded demo: a task, and a tiny model that cannot do it yet, both made on the spot and always the same.

Reversing eight digits is easy to check, the untrained model never gets it right, and whether training teaches it
depends on the recipe: a poor learning rate leaves it at 0%, a good one reaches 100%, in half a minute on one core.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.errors import MachineError
from agent.resources import resource
from agent.run import Job, Mount
from scenarios import Bench
from scenarios.finetune.files import MARKER, install, replacing, require_ours, scratch

MODEL = "demo/tiny"
TRAIN_FILE, BENCHMARK_FILE = "train.jsonl", "benchmark.jsonl"
DEADLINE = 600.0  # seconds; it takes about 5


class Demo(msgspec.Struct, frozen=True, kw_only=True):
    """A demo data set, the model it is meant for, and how many rows it has.

    Attributes:
        summary: The task in a few words.
        train_rows: Rows to train on. benchmark_rows: held-out questions, for both splits together.
    """

    summary: str
    model: str = MODEL
    train_rows: int
    benchmark_rows: int


DEMO = {"demo/reverse": Demo(summary="reverse eight digits", train_rows=2000, benchmark_rows=300)}


def make_data(directory: Path, name: str = "demo/reverse") -> None:
    """Write `train.jsonl` and `benchmark.jsonl` (columns question, answer; all strings); no row is in both.

    Several calls may do so at once. What is there already is kept, and made whole where it is damaged.

    Raises:
        UsageError: `directory` holds something that ftloop did not make.
    """
    files = _data(DEMO[name])
    directory.parent.mkdir(parents=True, exist_ok=True)
    if not (directory / MARKER).is_file():
        draft = scratch(directory)
        draft.mkdir()
        for file, text in {**files, MARKER: json.dumps({"demo": name}) + "\n"}.items():
            (draft / file).write_text(text, encoding="utf-8")
        install(draft, directory, (directory / MARKER).is_file)
    for file, text in files.items():
        path = directory / file
        if not path.is_file() or path.read_bytes() != text.encode():
            with replacing(path) as target:
                target.write(text)


def _data(demo: Demo) -> dict[str, str]:
    """The content of each file."""
    rows = _reversals()
    counts = {BENCHMARK_FILE: demo.benchmark_rows, TRAIN_FILE: demo.train_rows}
    return {file: "".join(json.dumps(next(rows)) + "\n" for _ in range(count)) for file, count in counts.items()}


def _reversals() -> Iterator[dict[str, str]]:
    """Endless distinct rows. Digits come from SHA-256, which no Python version changes."""
    seen = set()
    index = 0
    while True:
        digest = hashlib.sha256(f"demo/reverse {index}".encode()).digest()
        digits = f"{int.from_bytes(digest) % 10**8:08d}"
        index += 1
        if digits not in seen:
            seen.add(digits)
            # Strings, because a number would lose its leading zeros.
            yield {"question": f"Reverse: {digits}", "answer": digits[::-1]}


def make_model(bench: Bench, directory: Path) -> None:
    """Make the tiny base model in `directory` by a job in the training environment, unless it is there already.

    Several calls may do so at once, each with a bench directory of its own; the model that is there first stays.

    Raises:
        UsageError: `directory` holds something that ftloop did not make.
        MachineError: The job failed.
    """
    script = resource("docker/train/make_demo_model.py")
    source = hashlib.sha256(script.read_bytes()).hexdigest()
    if _made_from(directory) == source:
        return
    require_ours(directory)
    bench.say(f"making the demo model in {directory} (about 5 s)")
    made = bench.directory / "model"
    job = Job(
        name=bench.name,
        environment="train",
        argv=("python", str(script), str(made)),
        cwd=str(bench.directory),
        mounts=(Mount(str(script.parent)), Mount(str(bench.directory), writable=True)),
        variables={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        log=str(bench.directory / "make_model.log"),
        deadline=DEADLINE,
    )
    outcome = bench.run(job)
    if outcome.kind != "ok":
        raise MachineError(f"the demo model could not be made: {outcome.reason}\n{outcome.tail}", f"see {outcome.log}")
    _install(made, directory, source)


def _install(made: Path, directory: Path, source: str) -> None:
    """Move the finished model to its place in one step, so that a half-made one is never taken for it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = scratch(directory)
    shutil.copytree(made, draft, copy_function=shutil.copyfile)  # not their modes: weights are made for one user only
    (draft / MARKER).write_text(json.dumps({"make_demo_model.py": source}) + "\n", encoding="utf-8")
    install(draft, directory, lambda: _made_from(directory) == source)
    shutil.rmtree(made, ignore_errors=True)


def _made_from(directory: Path) -> str | None:
    """Hash of the script that made this model; None where the marker is missing or damaged."""
    try:
        found = json.loads((directory / MARKER).read_text(encoding="utf-8"))["make_demo_model.py"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)
