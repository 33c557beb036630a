"""The job that asks a model the questions of one split: its input written, its program, what it may see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import accept
from agent.gateway import Door
from agent.records import Checkpoint
from agent.resources import resource
from agent.run import Job, Mount
from scenarios import Bench, Progress
from scenarios.finetune import compass
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.results import LARGEST_ANSWER, Unusable, read_bounded
from scenarios.finetune.score_cache import DTYPES, PROGRAMS, Device, Sampling
from scenarios.finetune.splits import Item

TINY_BYTES = 64 * 1024**2
"""Weights below this run on one thread: twelve times faster than on two, because the threads only wait."""
PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one job asks of which model.

    Attributes:
        model: Directory of the base model. checkpoint: what was trained on it; None for the base itself.
        items: The questions, in the order in which they are asked. fewshot: examples before each.
        kept: File where the predictions of a judged benchmark outlive a job whose judging failed.
    """

    model: Path
    checkpoint: Checkpoint | None
    benchmark: Benchmark
    items: Sequence[Item]
    fewshot: int
    sampling: Sampling
    device: Device
    timeout: float
    kept: Path | None = None

    @property
    def adapter(self) -> str | None:
        """Directory of the adapter, where one was trained."""
        return self.checkpoint.path if self.checkpoint and self.checkpoint.adapter else None

    @property
    def loaded(self) -> Path:
        """Directory of the model that is loaded first."""
        return self.model if self.checkpoint is None or self.adapter else Path(self.checkpoint.path)


def job(bench: Bench, stage: Path, asked: Asked, door: Door | None = None, judge: str = "") -> Job:
    """The job, with its input written: only the split being scored is ever inside its reach."""
    program = resource(PROGRAMS[asked.benchmark.engine])
    given, output = stage / "input", stage / "output"
    shutil.rmtree(stage, ignore_errors=True)
    given.mkdir(parents=True)
    output.mkdir()
    request = _request(asked, given, output)
    if asked.benchmark.engine == "opencompass":
        request["task"] = compass.lay_out(asked.benchmark, asked.items, given, fewshot=asked.fewshot)
        request["judge"] = {"socket": str(door.socket), "model": judge} if door else None
        if asked.kept and asked.kept.is_file():
            shutil.copyfile(asked.kept, given / PREDICTIONS)
            request["predictions"] = str(given / PREDICTIONS)
    (given / "request.json").write_text(json.dumps(request, indent=1), "utf-8")
    loaded, adapter = asked.loaded, asked.adapter
    readable = [loaded, *([Path(adapter)] if adapter else []), program.parent, given, *asked.benchmark.sources]
    if door:
        readable.append(door.directory)
    return Job(
        name=f"{bench.name}-{stage.name}",
        environment="bench",
        argv=("python", str(program), str(given / "request.json")),
        cwd=str(output),
        mounts=(*(Mount(str(path)) for path in readable), Mount(str(output), writable=True)),
        variables=_variables(loaded, output),
        log=str(stage / "bench.log"),
        deadline=asked.timeout,
    )


def keep_predictions(output: Path, asked: Asked) -> None:
    """Keep what was predicted for the next attempt, which then has only to be judged; nothing where there is none."""
    if asked.kept is None:
        return
    with suppress(Unusable):
        content = read_bounded(output / PREDICTIONS, LARGEST_ANSWER * len(asked.items) * asked.sampling.samples)
        asked.kept.parent.mkdir(parents=True, exist_ok=True)
        draft = asked.kept.with_name(f".{asked.kept.name}.draft")
        draft.write_bytes(content)
        draft.replace(asked.kept)


def _request(asked: Asked, given: Path, output: Path) -> dict[str, Any]:
    benchmark, sampling = asked.benchmark, asked.sampling
    _write_lines(given / "questions.jsonl", [{"id": item.id, "row": item.row} for item in asked.items])
    if shots := bool(asked.fewshot and benchmark.shots):
        _write_lines(given / "shots.jsonl", list(benchmark.shots))
    return {
        "model": str(asked.loaded),
        "adapter": asked.adapter,
        "written_by": asked.checkpoint.versions.get("transformers") if asked.checkpoint else None,
        "task": benchmark.task,
        "generation": benchmark.generation,
        "questions": str(given / "questions.jsonl"),
        "shots": str(given / "shots.jsonl") if shots else None,
        "fewshot": asked.fewshot,
        "metric": benchmark.metric,
        "filter": benchmark.filter,
        "samples": sampling.samples,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "blocks": list(accept.looks(len(asked.items))),
        "device": asked.device,
        "dtype": DTYPES[asked.device],
        "output": str(output),
    }


def _variables(model: Path, output: Path) -> dict[str, str]:
    variables = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(output / "huggingface"),
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",  # its bars are no use in a log; progress has a file of its own
    }
    size = sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in model.glob(pattern))
    return variables | {"OMP_NUM_THREADS": "1"} if size < TINY_BYTES else variables


def progress(output: Path, total: int, name: str) -> Progress:
    """How many questions are answered, from the small file that the job writes."""

    def look() -> tuple[float, str] | None:
        try:
            answered = int(read_bounded(output / "progress", 100).split(b"/")[0])
        except (Unusable, ValueError):
            return None
        return min(answered / total, 1.0), f"{name}: {answered}/{total} questions"

    return look


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, default=str) + "\n" for line in lines), "utf-8")
