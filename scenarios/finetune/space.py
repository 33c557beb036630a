"""The default search space of supervised fine-tuning: what to vary where nobody who knows the model says better."""

from __future__ import annotations

from collections.abc import Sequence

from agent.space import Choice, Float, Parameter, Space

METHODS = ("full", "lora")
BATCHES = (16, 32)


def default_space(methods: Sequence[str] = METHODS, batches: Sequence[int] = BATCHES) -> Space:
    """The space over LLaMA-Factory keys; the order is that of importance.

    Args:
        methods: Values of finetuning_type; leave "full" out where its optimizer state does not fit into memory.
        batches: Per-device batch sizes; smaller ones where memory is short.

    Raises:
        ValueError: No method or no batch size is given.
    """
    parameters = [
        # Matters most, and its best value moves with the method, the batch and above all the model's size: full tuning
        # of 7B models wants about 1e-5, LoRA 1e-4 to 5e-4, models below 10M parameters 1e-3 and more. So three decades.
        Parameter("learning_rate", Float(1e-5, 1e-2, log=True)),
        # Full tuning can learn more; LoRA forgets less and overfits small data less (Biderman et al. 2024).
        # "freeze" lies between the two, and needs the number of layers to be well set.
        Parameter("finetuning_type", Choice(tuple(methods))),
        # The usual ranks. lora_alpha stays LLaMA-Factory's twice the rank, so that the scale does not move with it.
        Parameter("lora_rank", Choice((8, 16, 32, 64)), when=("finetuning_type", "lora")),
        # The usual sizes. With a fixed number of epochs a smaller batch takes more steps, and costs more time.
        Parameter("per_device_train_batch_size", Choice(tuple(batches))),
        # What LLaMA-Factory's examples and the Trainer's default use, and no decay at all.
        Parameter("lr_scheduler_type", Choice(("cosine", "linear", "constant_with_warmup"))),
        # None to the usual 10%: guards the first steps at high learning rates.
        Parameter("warmup_ratio", Float(0.0, 0.1)),
    ]
    if "lora" not in methods:
        parameters = [parameter for parameter in parameters if parameter.key != "lora_rank"]
    return Space(tuple(parameters))
