"""The memory estimator against real trainings on a CPU: a table, and one JSON object for `make bench`-like use.

python tests/estimates.py [--only NAME ...] [--work DIRECTORY]

Each case trains three steps with the locked LLaMA-Factory on a randomly initialised model. Measured is the peak of
resident memory above what the process has once its libraries are imported. About half a minute a case on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.run.environments import Environments  # noqa: E402
from scenarios.finetune.estimate import Estimate, estimate  # noqa: E402
from scenarios.finetune.estimate_shapes import Shapes, shapes  # noqa: E402

PROGRAM = ROOT / "tests/programs/measure_training.py"
LIMITS = (0.8, 0.9, 1.1, 1.25)
"""Memory limits around what was measured, at which "fits" or "does not fit" is asked: half of them near."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One training; `tokens` is its cutoff_len and the length of its longest rows."""

    config: Mapping[str, Any]
    keys: Mapping[str, Any]
    tokens: int
    rows: int = 64
    padded: bool = True
    dtype: str = "float32"
    steps: int = 3

    def estimate(self) -> Estimate:
        """What the estimator says."""
        keys = {**self.keys, "cutoff_len": self.tokens}
        return estimate(self.shapes(), keys, device="cpu", tokens=self.tokens)

    def shapes(self) -> Shapes:
        """The model's."""
        return shapes(self.config, dtype=self.dtype)


def decoder(kind: str, hidden: int, layers: int, wide: int, heads: int, grouped: int, vocab: int, **more: Any) -> Any:
    """A config.json."""
    sizes = {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": wide,
        "num_attention_heads": heads,
        "num_key_value_heads": grouped,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
    }
    return sizes | more


def method(name: str, batch: int, summed: int = 1, **more: Any) -> dict[str, Any]:
    """A recipe's keys."""
    keys = {"finetuning_type": name, "per_device_train_batch_size": batch, "gradient_accumulation_steps": summed}
    return keys | more


QWEN_5M = decoder("qwen2", 256, 6, 768, 8, 4, 4096)
QWEN_20M = decoder("qwen2", 384, 8, 1024, 6, 2, 16384)
QWEN_55M = decoder("qwen2", 512, 10, 1536, 8, 2, 49152)
QWEN_100M = decoder("qwen2", 768, 12, 2048, 12, 4, 32000)
LLAMA_40M = decoder("llama", 512, 8, 1408, 8, 8, 12000, tie_word_embeddings=False)
LLAMA_160M = decoder("llama", 768, 14, 2688, 12, 4, 24000, tie_word_embeddings=False)
QWEN3_30M = decoder("qwen3", 448, 8, 1344, 7, 7, 8000, head_dim=64)
LLAMA_11M = decoder("llama", 320, 6, 896, 5, 5, 6000, tie_word_embeddings=False)
QWEN_35M = decoder("qwen2", 448, 9, 1280, 7, 1, 32000)
QWEN3_65M = decoder("qwen3", 640, 10, 1920, 10, 5, 20000, head_dim=64)
LLAMA_100M = decoder("llama", 704, 12, 1920, 11, 11, 20000, tie_word_embeddings=False)
QWEN_130M = decoder("qwen2", 832, 14, 2304, 13, 1, 24000)
LLAMA_200M = decoder("llama", 1024, 12, 2816, 16, 4, 30000, tie_word_embeddings=False)
NO_CHECKPOINTS = {"disable_gradient_checkpointing": True}

FITTED: dict[str, Case] = {  # those that the constants of estimate.py were fitted on
    "20M full": Case(config=QWEN_20M, keys=method("full", 4, **NO_CHECKPOINTS), tokens=256, padded=False),
    "100M full checkpointed": Case(config=QWEN_100M, keys=method("full", 1), tokens=128),
    "55M lora short": Case(config=QWEN_55M, keys=method("lora", 1), tokens=512),
    "55M lora": Case(config=QWEN_55M, keys=method("lora", 2, **NO_CHECKPOINTS), tokens=256, padded=False),
    "55M lora long": Case(config=QWEN_55M, keys=method("lora", 2), tokens=1024),
    "5M full long": Case(config=QWEN_5M, keys=method("full", 8, **NO_CHECKPOINTS), tokens=1024),
    "5M lora": Case(config=QWEN_5M, keys=method("lora", 4, lora_rank=16), tokens=256),
    "5M full": Case(config=QWEN_5M, keys=method("full", 4, **NO_CHECKPOINTS), tokens=384),
    "20M lora": Case(config=QWEN_20M, keys=method("lora", 8, **NO_CHECKPOINTS), tokens=256),
    "30M qwen3 full": Case(config=QWEN3_30M, keys=method("full", 4), tokens=512),
    "30M qwen3 dpo lora": Case(config=QWEN3_30M, keys=method("lora", 2, stage="dpo"), tokens=384),
    "40M llama freeze": Case(config=LLAMA_40M, keys=method("freeze", 8), tokens=256),
    "40M llama dpo full": Case(config=LLAMA_40M, keys=method("full", 1, stage="dpo"), tokens=256),
    "40M llama adafactor": Case(config=LLAMA_40M, keys=method("full", 2, optim="adafactor"), tokens=256),
    "55M bfloat16 lora": Case(config=QWEN_55M, keys=method("lora", 2), tokens=512, dtype="bfloat16"),
    "100M lora": Case(config=QWEN_100M, keys=method("lora", 2, lora_rank=64), tokens=512),
    "100M full summed": Case(config=QWEN_100M, keys=method("full", 2, 2, **NO_CHECKPOINTS), tokens=256),
    "160M llama full": Case(config=LLAMA_160M, keys=method("full", 1), tokens=256),
}
CASES: dict[str, Case] = {  # those that it is judged by: chosen, and run once, after the constants were fixed
    "2M lora": Case(config=decoder("qwen2", 192, 5, 512, 6, 2, 2048), keys=method("lora", 8), tokens=128),
    "11M llama full": Case(config=LLAMA_11M, keys=method("full", 4, **NO_CHECKPOINTS), tokens=256),
    "11M llama lora": Case(config=LLAMA_11M, keys=method("lora", 4, **NO_CHECKPOINTS), tokens=512),
    "35M lora": Case(config=QWEN_35M, keys=method("lora", 1), tokens=768),
    "35M orpo lora": Case(config=QWEN_35M, keys=method("lora", 1, stage="dpo", pref_loss="orpo"), tokens=512),
    "65M qwen3 full": Case(config=QWEN3_65M, keys=method("full", 2), tokens=256),
    "65M qwen3 freeze": Case(config=QWEN3_65M, keys=method("freeze", 4, freeze_trainable_layers=3), tokens=256),
    "100M llama lora": Case(
        config=LLAMA_100M, keys=method("lora", 2, lora_rank=32, **NO_CHECKPOINTS), tokens=384, padded=False
    ),
    "100M llama adamw_torch": Case(config=LLAMA_100M, keys=method("full", 1, 2, optim="adamw_torch"), tokens=128),
    "130M full": Case(config=QWEN_130M, keys=method("full", 1), tokens=192),
    "200M llama lora": Case(config=LLAMA_200M, keys=method("lora", 1), tokens=512),
    "200M llama full": Case(config=LLAMA_200M, keys=method("full", 1), tokens=128),
}


def measure(case: Case, directory: Path, python: Path) -> int:
    """Bytes of the training's peak above the imports; raises CalledProcessError where it does not train."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "case.json").write_bytes(msgspec.json.encode(case))
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    alone = {"HF_HOME": str(directory / "cache"), "DISABLE_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    for verb in ("make", "train"):
        with (directory / f"{verb}.log").open("wb") as log:
            done = subprocess.run(
                [python, PROGRAM, verb, directory],
                env={"PATH": path, "LANG": "C.UTF-8", **offline, **alone},
                stdout=subprocess.PIPE,
                stderr=log,
                check=True,
            )
    points = json.loads(done.stdout.splitlines()[-1])
    return int(max(point["peak"] for point in points.values()) - points["baseline"]["now"])


def right(estimated: int, measured: int) -> tuple[int, int]:
    """At how many of the limits the estimate decides as the measurement does, and of how many."""
    decided = [(estimated <= share * measured) == (share >= 1) for share in LIMITS]
    return sum(decided), len(decided)


def summary(rows: Sequence[tuple[str, int, int]]) -> dict[str, float]:
    """Of (name, estimated, measured): mean and worst relative error, share of right decisions, range of sizes."""
    errors = [abs(estimated / measured - 1) for _, estimated, measured in rows]
    counts = [right(estimated, measured) for _, estimated, measured in rows]
    return {
        "cases": len(rows),
        "mean_error": round(statistics.mean(errors), 3),
        "worst_error": round(max(errors), 3),
        "right": round(sum(hit for hit, _ in counts) / sum(asked for _, asked in counts), 3),
        "range": round(max(row[2] for row in rows) / min(row[2] for row in rows), 1),
    }


def main() -> int:
    """Print the table and the summary; 0 where mean error is under 15% and 9 of 10 decisions are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*FITTED, *CASES], help="these cases, else all it is judged by")
    parser.add_argument("--fitted", action="store_true", help="the cases that the constants were fitted on")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    chosen = options.only or list(FITTED if options.fitted else CASES)
    environments = Environments()
    environments.ready("train", lambda line: print(line, file=sys.stderr))
    rows: list[tuple[str, int, int]] = []
    print("| case | estimated MiB | measured MiB | error | decides right at 80, 90, 110, 125% |\n|---|---|---|---|---|")
    for name in chosen:
        with tempfile.TemporaryDirectory(dir=options.work) as directory:
            case = (FITTED | CASES)[name]
            row = (name, case.estimate().above_imports, measure(case, Path(directory), environments.python("train")))
        rows.append(row)
        mib = [size / 2**20 for size in row[1:]]
        hit, asked = right(*row[1:])
        print(f"| {name} | {mib[0]:.0f} | {mib[1]:.0f} | {row[1] / row[2] - 1:+.1%} | {hit} of {asked} |", flush=True)
    found = summary(rows)
    print(json.dumps({"name": "memory_estimate", **found}))
    return 0 if found["mean_error"] < 0.15 and found["right"] >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
