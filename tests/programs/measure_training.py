"""Runs one real LLaMA-Factory training in the train environment and says how much memory it needed; see estimates.py.

python measure_training.py make DIRECTORY     # writes the model and the data that DIRECTORY/case.json describes
python measure_training.py train DIRECTORY    # prints one JSON object: bytes at each point, last line of stdout
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("model", "data", "out")


def make(directory: Path) -> None:
    """A randomly initialised model of the case's config, and rows that fill `tokens` each (every other one half)."""
    sys.path.insert(0, str(ROOT / "docker/train"))
    import torch
    from make_demo_model import make_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    case = json.loads((directory / "case.json").read_text())
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    settings = dict(case["config"])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config.eos_token_id = tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_config(config, torch_dtype=getattr(torch, case.get("dtype", "float32")))
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    _write_rows(directory / "data", case)


def _write_rows(directory: Path, case: dict[str, Any]) -> None:
    """Digits are one token each. A row of the full length is longer than cutoff_len, and cut to it.

    Every other row is shorter, so that batches need padding, but where a batch is a single row.
    """
    directory.mkdir(exist_ok=True)
    rng = random.Random(0)
    tokens, stage = case["tokens"], case["keys"].get("stage", "sft")
    padded = case["padded"] and case["keys"]["per_device_train_batch_size"] > 1

    def digits(count: int) -> str:
        return "".join(rng.choice("0123456789") for _ in range(count))

    rows: list[dict[str, Any]] = []
    for index in range(case["rows"]):
        answer = tokens // 2 - 32 if padded and index % 2 else tokens
        row: dict[str, Any] = {"instruction": digits(16), "output": digits(answer)}
        if stage in ("dpo", "rm"):
            row = {"instruction": digits(16), "chosen": row["output"], "rejected": digits(answer)}
        if stage == "kto":
            row["kto_tag"] = bool(index % 2)
        rows.append(row)
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "instruction", "response": "output"}
    if stage in ("dpo", "rm"):
        columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    if stage == "kto":
        columns["kto_tag"] = "kto_tag"
    info = {"rows": {"file_name": "rows.jsonl", "columns": columns, "ranking": stage in ("dpo", "rm")}}
    (directory / "dataset_info.json").write_text(json.dumps(info))


def memory() -> dict[str, int]:
    """Bytes: this process's resident memory now, and its peak so far; and the processor time that it has used."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "now": int(fields["VmRSS"].split()[0]) << 10,
        "peak": int(fields["VmHWM"].split()[0]) << 10,
        "cpu_ms": round((spent.ru_utime + spent.ru_stime) * 1000),
    }


def train(directory: Path) -> dict[str, Any]:
    """Train `steps` steps; resident memory after the imports (the baseline), before the first step, and the peak."""
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    case = json.loads((directory / "case.json").read_text())
    points: dict[str, dict[str, int]] = {}

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            points["begin"] = memory()

        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            points[f"step {state.global_step}"] = memory()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            points["end"] = memory()

    settings = {
        "model_name_or_path": str(directory / "model"),
        "stage": "sft",
        "do_train": True,
        "dataset": "rows",
        "dataset_dir": str(directory / "data"),
        "template": "qwen3_nothink",
        "output_dir": str(directory / "out"),
        "overwrite_output_dir": True,
        "overwrite_cache": True,
        "cutoff_len": case["tokens"],
        "max_steps": case.get("steps", 3),
        "save_strategy": "no",
        "save_only_model": True,
        "report_to": "none",
        "logging_steps": 1,
        "use_cpu": True,
        "learning_rate": 1e-4,
        "disable_shuffling": True,
        **case["keys"],
    }
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    points["baseline"] = memory()
    run_exp(args=settings, callbacks=[Watch()])
    points["saved"] = memory()
    return points


def main(verb: str, directory: str) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if verb == "make":
        make(Path(directory))
    else:
        print(json.dumps(train(Path(directory))))


if __name__ == "__main__":
    main(*sys.argv[1:])
