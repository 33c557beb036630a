"""A working directory with data, a model and a training_config.yaml, as a user of `ftloop sweep` has one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agent.experiments.cells import Experiment, Status, find, read, status
from agent.run.environments import Environments
from tests.test_models import make_model

ROOT = Path(__file__).resolve().parent.parent
COPA = "Data_v2/synthetic/prompt_engineering/copa_mezo_v1/Copa"
LLAMA = "meta-llama/Llama-3.2-1B"
SCAN: dict[str, Any] = {
    "experiment": {"purpose": "hyperparameter_tuning"},
    "model": LLAMA,
    "task": "Copa",
    "method": "fo_lora",
    "data": {"path": COPA},
    "hyperparameters": {"learning_rate": ["1e-6", "5e-7", "2e-7", "1e-7"], "batch_size": 16, "steps": 3, "seed": 0},
}
"""The learning-rate scan of the documentation, with fewer steps and a method that there is."""


@dataclass(frozen=True)
class Workshop:
    """`directory` is the working directory of the commands; `environment` holds their variables."""

    directory: Path
    environment: dict[str, str]

    def config(self, name: str = "training_config.yaml", **changes: Any) -> Path:
        """Write a training_config.yaml: SCAN, with some of its keys replaced (None takes one out)."""
        content = {key: value for key, value in (SCAN | changes).items() if value is not None}
        path = self.directory / name
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def hyperparameters(self, **changes: Any) -> dict[str, Any]:
        return {key: value for key, value in (SCAN["hyperparameters"] | changes).items() if value is not None}

    def start(self, *words: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "agent.cli", *words]
        return subprocess.Popen(
            argv,
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, code: int = 0) -> str:
        """What a command printed; it must have ended with this code."""
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out + err

    def cells(self, root: str = "Results_v2") -> list[tuple[Path, Experiment, Status | None]]:
        """Every experiment below a root, the oldest first."""
        found = [(path, read(path), status(path)) for path in find(self.directory / root)]
        return sorted(found, key=lambda one: (one[2].started if one[2] else 0.0, str(one[0])))

    def states(self) -> list[str]:
        return [status.now if status else "" for _, _, status in self.cells()]

    def lay_data(self, path: str = COPA, rows: int = 8, *, metadata: bool = True, text: str = "Reverse") -> Path:
        """Training, validation and test rows, and above them how they were made."""
        directory = self.directory / path
        directory.mkdir(parents=True)
        for split in ("train", "validation", "test"):
            lines = [{"prompt": f"{text}: {split} {i}", "response": f"{i} {split}"} for i in range(rows)]
            file = directory / f"{directory.name.lower()}_{split}.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if metadata:
            content = {"experiment_id": directory.parent.name, "generator": "gpt-4o", "temperature": 0.7}
            (directory.parent / "experiment_metadata.json").write_text(json.dumps(content))
        return directory

    def slow(self, seconds: float | None) -> None:
        """How long the stand-in for a training takes from now on."""
        file = self.directory / "workspace/models" / LLAMA / "slow"
        file.unlink(missing_ok=True) if seconds is None else file.write_text(str(seconds))


def workshop(directory: Path, environments: Path | None = None) -> Workshop:
    """A workshop with data and a model.

    Args:
        environments: Of the local runner; None for one whose trainer is tests/programs/trainer.py.
    """
    if environments is None:
        environments = directory / "environments"
        stand_in = Environments(environments).python("train").parent
        stand_in.mkdir(parents=True)
        (stand_in.parent / ".complete").write_text("")
        program = stand_in / "llamafactory-cli"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/programs/trainer.py" "$@"\n')
        program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FT_", "HF_", "OPENAI_"))}
    environment = kept | {
        "PYTHONPATH": str(ROOT),
        "FT_FILE_PATH": str(directory / "workspace"),
        "FT_RUNNER": "local",
        "FT_ENVIRONMENTS": str(environments),
        "OMP_NUM_THREADS": "1",
    }
    made = Workshop(directory, environment)
    made.lay_data()
    make_model(directory / "workspace/models" / LLAMA)
    return made


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
