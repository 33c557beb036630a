"""Stands in for llamafactory-cli where a test is about what happens around a training: writes what that would leave.

A learning rate of 0.9 fails, and one of 0.8 as if the environment were broken. A file `slow` beside the model's
weights holds the seconds that a training takes.
"""

import json
import sys
import time
from pathlib import Path

import yaml

config = yaml.safe_load(Path(sys.argv[2]).read_text())
print("***** train metrics *****", flush=True)
print("loading weights", file=sys.stderr, flush=True)
slow = Path(config["model_name_or_path"]) / "slow"
time.sleep(float(slow.read_text()) if slow.exists() else 0.0)
rate = float(config["learning_rate"])
if rate == 0.9:
    raise RuntimeError("the learning rate is absurd")
if rate == 0.8:
    raise ModuleNotFoundError("No module named 'torch'")
model = Path(config["output_dir"])
model.mkdir()
name = "adapter_model.safetensors" if config["finetuning_type"] == "lora" else "model.safetensors"
(model / name).write_text(json.dumps({key: config.get(key) for key in ("learning_rate", "max_steps", "seed")}))
history = [{"step": step, "loss": 2.0 - rate * step, "grad_norm": 1.0} for step in (1, 2)]
(model / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": config["max_steps"]}))
(model / "all_results.json").write_text(json.dumps({"train_runtime": 0.1}))
