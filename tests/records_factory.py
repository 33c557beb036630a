"""Builders of small, realistic records, for any test that needs some."""

from __future__ import annotations

import math
from typing import Any

from agent.records import (
    Checkpoint,
    Comparison,
    Contamination,
    Failure,
    FailureKind,
    FileRef,
    Identity,
    Loss,
    Proposal,
    Recipe,
    Score,
    Sealed,
    Split,
    StudyReport,
    Trial,
    Usage,
    Value,
    Verdict,
)


def make_score(mean: float, n: int = 150, benchmark: str = "demo/reverse", split: Split = "search") -> Score:
    """A score with the standard error and the 95% Wilson interval of `mean` over `n` questions."""
    z = 1.959964
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Score(
        benchmark=benchmark,
        split=split,
        n=n,
        mean=mean,
        stderr=math.sqrt(mean * (1 - mean) / n),
        low=max(0.0, min(mean, centre - half)),
        high=min(1.0, max(mean, centre + half)),
        unscored=0,
        questions=FileRef(path=f"questions-{split}.jsonl", sha256="0" * 64),
        settings={"few_shot": 0, "temperature": 0.0},
        key=f"{benchmark}-{split}-{mean}-{n}",
        seconds=11.5,
    )


def make_comparison(difference: float, verdict: Verdict, against: str = "base", n: int = 150) -> Comparison:
    """A paired comparison whose interval is 0.06 wide on each side."""
    return Comparison(
        verdict=verdict,
        difference=difference,
        low=max(-1.0, difference - 0.06),
        high=min(1.0, difference + 0.06),
        wins=round(max(difference, 0.0) * n) + 3,
        losses=round(max(-difference, 0.0) * n) + 3,
        n=n,
        p_value=0.0001 if verdict == "better" else 0.4,
        alpha=0.0045,
        detectable=0.11,
        against=against,
    )


def make_proposal(
    change: str = "learning_rate 0.002", hypothesis: str = "", train: dict[str, Value] | None = None
) -> Proposal:
    """A proposal of the TPE proposer."""
    return Proposal(
        hypothesis=hypothesis or "A larger step leaves the plateau within the budget.",
        change=change,
        recipe=Recipe(train=train or {"finetuning_type": "lora", "lora_rank": 16, "learning_rate": 0.002}),
        author="tpe",
    )


def make_checkpoint(number: int = 1, steps: int = 200, adapter: bool = True, rate: float = 0.02) -> Checkpoint:
    """A checkpoint with a loss that falls exponentially from 2.4, logged every 10 steps."""
    losses = tuple(Loss(step, round(0.02 + 2.4 * math.exp(-rate * step), 4)) for step in range(10, steps + 1, 10))
    return Checkpoint(
        path=f"/ws/studies/demo-reverse-3f2a/trials/{number}/train",
        weights=f"{number:064x}",
        adapter=adapter,
        losses=losses,
        steps=steps,
        seconds=55.0,
    )


def make_trial(
    number: int = 1,
    mean: float = 0.873,
    verdict: Verdict = "better",
    *,
    difference: float | None = None,
    against: str = "base",
    change: str = "learning_rate 0.002",
    **fields: Any,
) -> Trial:
    """A trial that was scored and compared; `fields` replace any field of the record."""
    gain = mean - 0.013 if difference is None else difference
    values: dict[str, Any] = {
        "proposal": make_proposal(change),
        "scores": (make_score(mean),),
        "comparison": make_comparison(gain, verdict, against),
        "checkpoint": make_checkpoint(number, rate=0.002 + 0.02 * mean),
        "seconds": 80.0 + number,
    }
    return Trial(number=number, **(values | fields))


def make_failed(number: int, kind: FailureKind = "train:oom", reason: str = "", tail: str = "") -> Trial:
    """A trial that ended without a score."""
    return Trial(
        number=number,
        proposal=make_proposal("per_device_train_batch_size 64"),
        failure=Failure(
            kind=kind,
            reason=reason or "CUDA out of memory at batch size 32, after halving once from 64",
            tail=tail or "  0%|          | 0/200 [00:00<?, ?it/s]\nRuntimeError: CUDA out of memory.",
        ),
        lesson="Batches above 16 do not fit.",
        seconds=31.0,
    )


def make_identity(**fields: Any) -> Identity:
    """The study of the demo; `fields` replace any field of the record."""
    values: dict[str, Any] = {
        "dataset": "demo/reverse",
        "dataset_fingerprint": "d" * 64,
        "model": "demo/tiny",
        "model_fingerprint": "e" * 64,
        "benchmarks": ("demo/reverse",),
        "limit": 150,
        "generation": {"temperature": 0.0, "max_new_tokens": 32},
    }
    return Identity(**(values | fields))


def make_report(**fields: Any) -> StudyReport:
    """A study of six trials that found a winner (trial 4) and opened its test split once."""
    trials = (
        make_trial(1, 0.0, "tie", difference=-0.013, change="learning_rate 0.00001"),
        make_trial(2, 0.513, "better", lesson="The step size decides; longer training may add to it."),
        make_failed(3),
        make_trial(
            4, 0.873, "better", difference=0.36, against="trial 2", change="learning_rate 0.002, num_train_epochs 3"
        ),
        make_trial(5, 0.847, "tie", difference=-0.027, against="trial 4", change="lora_rank 64"),
        make_trial(6, 0.24, "worse", difference=-0.633, against="trial 4", change="learning_rate 0.02"),
    )
    values: dict[str, Any] = {
        "study": "demo-reverse-3f2a",
        "directory": "/ws/studies/demo-reverse-3f2a",
        "identity": make_identity(),
        "base": (make_score(0.013),),
        "trials": trials,
        "best": 4,
        "sealed": Sealed(
            winner=(make_score(0.86, split="test"),),
            base=(make_score(0.007, split="test"),),
            comparison=make_comparison(0.853, "better"),
        ),
        "openings": 1,
        "output": "/ws/output/demo-reverse-3f2a",
        "usage": Usage(),
        "active_seconds": 552.0,
        "ending": "6 of 6 trials are done",
        "contamination": Contamination(key="c", rows=2012, found={"demo/reverse": 12}, flagged=12, action="removed"),
    }
    return StudyReport(**(values | fields))
