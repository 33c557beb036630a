"""Reads what LLaMA-Factory writes: its progress while it runs, and the loss history and versions afterwards.

A training may be killed at any moment, so any file may be missing or end in the middle of a line. It may also be
hostile: what is not as LLaMA-Factory writes it counts as missing.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import msgspec

from agent.records import Loss
from agent.run import written

EXCEPTION = re.compile(r"^(?:\[rank\d+\]:\s*)?([A-Za-z_][\w.]*(?:Error|Exception|Exit)(?::.*)?)$")
LAUNCHERS = ("CalledProcessError", "ChildFailedError")  # torchrun's own, after the one that matters
VERSION = re.compile(r"^- (PEFT|Transformers|Pytorch|Datasets|Tokenizers) (\S+)$", re.MULTILINE)
PACKAGES = {"Pytorch": "torch"}
LONGEST_LINE = 4096
LONGEST_REASON = 400
LARGEST_STATE = 64 << 20


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A finished training, as it logged itself.

    Attributes:
        losses: Training loss; points that are not finite are left out.
        steps: Updates made. seconds: Time of the training loop, without loading.
        diverged: The first step whose loss is not finite, or the last step if its gradient is not; None if all is well.
    """

    losses: tuple[Loss, ...]
    steps: int
    seconds: float
    diverged: int | None


def logged(model: Path) -> tuple[int, int, float] | None:
    """The step last logged, the number of steps, and the loss; None before the first one."""
    try:
        lines = written.read_end(model.parent, f"{model.name}/trainer_log.jsonl", LONGEST_LINE).splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        entry = _object(line)
        try:
            step, total, loss = int(entry["current_steps"]), int(entry["total_steps"]), float(entry["loss"])
        except (KeyError, TypeError, ValueError, ArithmeticError):
            continue
        if step >= 0 and 0 < total < 2**63:
            return step, total, loss
    return None


def progress(model: Path) -> tuple[float, str] | None:
    """Fraction done and a few words ("step 40/200, loss 1.32"); None before the first logged step."""
    if (found := logged(model)) is None:
        return None
    step, total, loss = found
    return min(1.0, step / total), f"step {step}/{total}, loss {loss:.3g}"


def history(model: Path) -> History:
    """Loss history, steps and time of a training that ended normally; empty where it logged nothing usable."""
    state, results = _read(model, "trainer_state.json"), _read(model, "all_results.json")
    try:
        entries = [entry for entry in state.get("log_history", []) if isinstance(entry, dict) and "loss" in entry]
        points = [(int(entry["step"]), float(entry["loss"]), float(entry.get("grad_norm") or 0.0)) for entry in entries]
        steps, seconds = int(state.get("global_step", 0)), float(results.get("train_runtime", 0.0))
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return History(losses=(), steps=0, seconds=0.0, diverged=None)
    diverged = next((step for step, loss, _ in points if not math.isfinite(loss)), None)
    if diverged is None and points and not math.isfinite(points[-1][2]):
        diverged = points[-1][0]  # a single infinite gradient on the way is skipped by float16 training, and harmless
    losses = tuple(Loss(step, loss) for step, loss, _ in points if math.isfinite(loss))
    return History(losses=losses, steps=steps, seconds=seconds, diverged=diverged)


def versions(model: Path) -> dict[str, str]:
    """Versions of the packages that wrote the weights, as the model card lists them."""
    try:
        card = written.read(model.parent, f"{model.name}/README.md", LARGEST_STATE).decode("utf-8", "replace")
    except OSError:
        return {}
    return {PACKAGES.get(name, name.lower()): version for name, version in VERSION.findall(card)}


def telling_line(log: str) -> str:
    """The line that says why a Python program failed: its last exception; "" if there is none."""
    for line in reversed(log.splitlines()):
        match = EXCEPTION.match(line.strip())
        if match and not match[1].split(":")[0].endswith(LAUNCHERS):
            return match[1][:LONGEST_REASON]
    return ""


def _read(model: Path, name: str) -> dict[str, Any]:
    try:
        return _object(written.read(model.parent, f"{model.name}/{name}", LARGEST_STATE))
    except OSError:
        return {}


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
