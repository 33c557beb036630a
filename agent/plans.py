"""What this machine and its settings decide about every training, whoever asks for it."""

from __future__ import annotations

from agent.hardware import Hardware
from agent.settings import Settings
from scenarios.finetune import estimate_rules, training
from scenarios.finetune.data import Prepared
from scenarios.finetune.models import ModelInfo
from scenarios.finetune.training import TrainingPlan

EPOCHS = 3.0
"""LLaMA-Factory's default."""


def plan_on(
    machine: Hardware,
    settings: Settings,
    model: ModelInfo,
    data: Prepared,
    *,
    cutoff_len: int,
    template: str | None,
    max_epochs: float,
    at_once: int = 1,
) -> TrainingPlan:
    """The plan of a model's trainings on these data, with no more tokens a row than the model can read.

    Args:
        template: LLaMA-Factory's; None for the model's own chat template.
        at_once: How many trainings share the cores.
    """
    cores = max(1, machine.cores // at_once)
    return TrainingPlan(
        model=model,
        data=data,
        cutoff_len=min(cutoff_len, model.context or cutoff_len),
        template=template,
        default_epochs=min(EPOCHS, max_epochs),
        max_epochs=max_epochs,
        debug_timeout=settings.debug_timeout,
        full_timeout=settings.full_timeout,
        threads=training.threads_for(model, cores),
        cores=cores,
        device="cuda" if machine.gpus else "cpu",
        gpus=max(1, len(machine.gpus)),
        gpu_memory=min(machine.gpus, default=0),
        memory=estimate_rules.memory_for_training(machine),
        disk=settings.trial_disk_bytes,
    )
