"""Where a run's files lie, to the letter:

outputs/{model_name}/{run_name}/{finetuning_type}/train                         the trained weights
outputs/{model_name}/{run_name}/{finetuning_type}/train_config.yaml             what was trained, in full
outputs/{model_name}/{run_name}/{finetuning_type}/eval_config.yaml, eval.sh     how it is evaluated
outputs/{model_name}/{run_name}/{finetuning_type}/eval/{tasks}/results.json     what came of that
outputs/{model_name}/{run_name}/{finetuning_type}/.ftloop/                      journal, data, logs of each stage
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.errors import UsageError
from agent.store import StudyPaths

OUTPUTS = "outputs"
HIDDEN = ".ftloop"
Mode = Literal["train", "eval"]
_NAME = re.compile(r"[^\W_][\w.+=-]*|_[\w.+=-]*[^\W_][\w.+=-]*")
_LONGEST = 100


@dataclass(frozen=True)
class RunPaths(StudyPaths):
    """The paths of one run; `root` holds its journal, as a study's does."""

    def stage(self, number: int, stage: str) -> Path:
        """A stage's directory; an evaluation's is where people look for it."""
        if stage.startswith("eval/"):
            return self.root.parent / stage
        return super().stage(number, stage)


@dataclass(frozen=True)
class Places:
    """One run's files. `root` is the directory above train and eval; `weights` that of the trained model."""

    root: Path
    weights: Path

    @property
    def paths(self) -> RunPaths:
        """Of its journal and stages."""
        return RunPaths(self.root / HIDDEN)

    def config(self, mode: Mode) -> Path:
        """The snapshot: train_config.yaml or eval_config.yaml."""
        return self.root / f"{mode}_config.yaml"

    @property
    def script(self) -> Path:
        """What runs the evaluation again."""
        return self.root / "eval.sh"

    def results(self, tasks: Sequence[str]) -> Path:
        """Where the scores of some benchmarks are put."""
        return self.root / self.stage(tasks) / "results.json"

    @staticmethod
    def stage(tasks: Sequence[str]) -> str:
        """The name of the stage that scores some benchmarks, which is its directory below `root`."""
        return f"eval/{'_'.join(tasks)}"


def places(
    model_name: str, run_name: str, finetuning_type: str, output_dir: str | None, mode: Mode, cwd: Path
) -> Places:
    """The places of a run. An explicit `output_dir` wins: a training's weights and its other files then lie in it."""
    if output_dir is not None:
        root = (cwd / Path(output_dir).expanduser()).absolute()
        return Places(root, root)
    for what, name in (("run_name", run_name), ("model_name", model_name), ("finetuning_type", finetuning_type)):
        require_name(what, name)
    root = cwd.absolute() / OUTPUTS / model_name / run_name / finetuning_type
    return Places(root, root / "train")


def require_name(what: str, name: str) -> None:
    """UsageError for a name that no directory of a run may have."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise UsageError(
            f"{what}: {name!r} cannot name a directory", "use letters, digits and . _ - + =, at most 100 of them"
        )


def model_name(name_or_path: str) -> str:
    """A model's name in paths: `meta-llama/Llama-3.2-1b` is `llama-3.2-1b`."""
    return Path(name_or_path.rstrip("/")).name.lower()


def tracker_name(model: str, run_name: str, stage: str) -> str:
    """What trackers and lists call a run: `llama-3.2-1b_first_sft`."""
    return f"{model}_{run_name}_{stage}"


def run_id(tracker: str, root: Path) -> str:
    """Its id in the index: runs of one name, of another method or in another directory, are other runs."""
    return f"{tracker}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"
