"""How much memory a training needs, from the model's config and the recipe's keys; no torch, no job.

What lives at once is followed through one optimizer step, as LLaMA-Factory 0.9.5 trains under transformers 4.57:
weights and optimizer states always; the saved activations and the copies of the logits when the loss is taken (`loss`),
the gradients and a layer's activations in the backward pass (`backward`), and what the optimizer needs on top
(`update`). The largest of these moments counts. docs/estimates.md has what was measured against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from scenarios.finetune.estimate_activations import attention_bytes, layer_saved, logit_copies, widths
from scenarios.finetune.estimate_keys import Keys, Trained, read_keys, trained
from scenarios.finetune.estimate_optimizer import state_bytes, update_bytes
from scenarios.finetune.estimate_shapes import Shapes

Device = Literal["cpu", "cuda"]
Zero = Literal["zero2", "zero3"]
Moment = Literal["loss", "backward", "update"]

FLOAT, HALF = 4, 2
MIB = 1 << 20
PROCESS = {"cpu": 500 * MIB, "cuda": 600 * MIB}
"""Of the process: torch, transformers and LLaMA-Factory once imported (measured), or CUDA's context (usual)."""
RUNTIME = {"cpu": 50 * MIB, "cuda": 200 * MIB}
"""Of trainer, data and late imports: measured with a model of 0.7M parameters. On a GPU, cuBLAS's workspace."""
CACHED = 0.05
"""Share that torch's allocator holds on a GPU beyond what is used."""
MAPPED = 32 * MIB
"""glibc gives larger blocks back at once (the upper limit of its mmap threshold); holes of smaller ones stay."""
HOLES = {"full": 0.25, "freeze": 0.25, "lora": 0.9}
LORA_CHECKPOINTED = 0.5
"""Share of all layers' small activations that such holes add up to: fitted on the runs that docs/estimates.md names."""
GRADIENT_HOLES = 0.45
"""The same for small gradients."""
BUCKET = 500_000_000
"""Elements in DeepSpeed's buckets (docker/train/deepspeed)."""
GATHERED = 1_000_000_000
"""Elements that ZeRO-3 gathers at most."""
BITS_OVERHEAD = 1 / 16
"""Bytes of bitsandbytes' constants for a quantized weight."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on each device at the moment that needs most.

    Attributes:
        weights: With a quantized model's constants, and the 16-bit copies of mixed precision.
        optimizer: Its states. gradients: With the buckets that share them between GPUs.
        activations: What the backward pass needs of the forward pass. logits: All copies of vocabulary x tokens.
        reference: The frozen copy that DPO and KTO compare a fully tuned model with.
        workspace: The optimizer's temporaries, and what the allocator holds beyond what is used.
        process: Before any model is loaded.
        moment: When it is.
    """

    device: Device
    moment: Moment
    weights: int
    optimizer: int
    gradients: int
    activations: int
    logits: int
    reference: int
    workspace: int
    process: int

    @property
    def above_imports(self) -> int:
        """Bytes beyond what the process has once its libraries are imported."""
        parts = (self.weights, self.optimizer, self.gradients, self.activations, self.logits, self.reference)
        return sum(parts) + self.workspace

    @property
    def total(self) -> int:
        """All bytes."""
        return self.above_imports + self.process


class _Held(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on one device that do not change from step to step."""

    weights: int
    optimizer: int
    reference: int
    gradients: int  # once all are there
    buckets: int


def estimate(
    shapes: Shapes,
    keys: Mapping[str, Any],
    *,
    device: Device,
    tokens: int | None = None,
    gpus: int = 1,
    zero: Zero | None = None,
) -> Estimate:
    """What a training with these keys needs on each of its devices.

    Args:
        shapes: The model's.
        keys: LLaMA-Factory's, typed as `arguments.canonical` returns them; what is missing has its default.
        device: What is trained on.
        tokens: The longest sequence of the data, where known; else every sequence is taken to be cutoff_len long.
        gpus: That share the work. zero: How DeepSpeed splits the states; None for plain data parallelism.
    """
    read = read_keys(keys, tokens=tokens)
    what = trained(shapes, read)
    held = _held(shapes, read, what, gpus, zero)
    moments = _moments(shapes, read, what, held, device)
    moment = max(moments, key=lambda name: sum(moments[name]))
    gradients, activations, logits, extra = moments[moment]
    used = held.weights + held.optimizer + held.reference + gradients + activations + logits + extra
    spare = _holes(shapes, read, what) if device == "cpu" else int(CACHED * used)
    return Estimate(
        device=device,
        moment=moment,
        weights=held.weights,
        optimizer=held.optimizer,
        gradients=gradients,
        activations=activations,
        logits=logits,
        reference=held.reference,
        workspace=extra + spare + RUNTIME[device],
        process=PROCESS[device],
    )


def _held(shapes: Shapes, keys: Keys, what: Trained, gpus: int, zero: Zero | None) -> _Held:
    own = what.parameters - what.adapter  # trained weights of the model itself
    frozen = shapes.parameters - own
    stored = HALF if shapes.half or keys.bits else FLOAT
    wide = HALF if keys.pure else FLOAT
    quantized = shapes.layers * sum(linear.parameters for linear in shapes.linears.values()) if keys.bits else 0
    weights = (frozen - quantized) * stored + int(quantized * ((keys.bits or 0) / 8 + BITS_OVERHEAD))
    weights += what.parameters * wide
    if keys.mixed and not keys.pure and zero is None:  # autocast keeps its 16-bit copies through the forward pass
        weights += HALF * (what.parameters + (frozen if not shapes.half and not keys.bits else 0))
    optimizer, gradients = state_bytes(shapes, keys, what), wide * what.parameters
    if keys.layerwise or keys.special == "badam":
        gradients = wide * max(shapes.layer, shapes.embedding)
    buckets = gradients if gpus > 1 and zero is None else 0
    if zero is not None:  # 16-bit weights and gradients; float32 masters beside the optimizer's states
        optimizer = (optimizer + FLOAT * what.parameters) // gpus
        gradients = HALF * what.parameters // gpus
        buckets = HALF * min(BUCKET, what.parameters)
        weights = HALF * shapes.parameters
        if zero == "zero3":
            weights = weights // gpus + HALF * min(GATHERED, shapes.parameters)
    full_reference = keys.reference and keys.method != "lora"
    reference = stored * shapes.parameters // (gpus if zero == "zero3" else 1) if full_reference else 0
    return _Held(weights=weights, optimizer=optimizer, reference=reference, gradients=gradients, buckets=buckets)


def _moments(
    shapes: Shapes, keys: Keys, what: Trained, held: _Held, device: Device
) -> dict[Moment, tuple[int, int, int, int]]:
    """Bytes of gradients, activations, logits and temporaries at each moment."""
    tokens = keys.sequences * keys.tokens
    product, stream = widths(shapes, keys)
    saved = sum(part.features * part.width for part in layer_saved(shapes, keys)) * tokens
    layer = saved + attention_bytes(shapes, keys)
    between = tokens * shapes.hidden * stream  # what a checkpointed layer keeps
    last = tokens * shapes.hidden * (2 * FLOAT + product)
    kept = what.through * (between if keys.checkpointing else layer) + last
    passing = tokens * product * (2 * shapes.intermediate * shapes.active + 2 * shapes.hidden)  # a layer's gradients
    one = layer + passing
    logits = tokens * shapes.vocab * logit_copies(keys)
    one_logit = tokens * shapes.vocab * (FLOAT + (product if product < FLOAT else 0))
    earlier = held.gradients + held.buckets if keys.accumulates else held.buckets
    output = FLOAT * shapes.embedding if what.head or (shapes.tied and what.embedding) else 0
    # Where weights are shared, the gradients from both ends are there before they are summed.
    twice = 2 * FLOAT * shapes.embedding if shapes.tied and what.embedding else 0
    again = twice or (FLOAT * shapes.embedding if what.embedding and keys.accumulates else 0)
    unquantized = HALF * max(linear.inputs * linear.outputs for linear in shapes.linears.values()) if keys.bits else 0
    deepest = kept + (one if keys.checkpointing else passing)
    largest = max(shapes.embedding if what.embedding else 0, *_sizes(shapes, keys, what))
    found: dict[Moment, tuple[int, int, int, int]] = {
        "loss": max((earlier, kept, logits, 0), (earlier + output, kept, one_logit, 0), key=sum),
        "backward": max(
            (earlier + output, deepest, 0, unquantized),
            (held.gradients + held.buckets, one, 0, again + unquantized),
            key=sum,
        ),
        "update": (held.gradients + held.buckets, 0, 0, update_bytes(keys, what, largest, device)),
    }
    return found


def _sizes(shapes: Shapes, keys: Keys, what: Trained) -> list[int]:
    """Parameters of the trained matrices of a layer."""
    linears = shapes.linears.values()
    if what.adapter:
        return [keys.rank * max(linear.inputs, linear.outputs) for linear in linears]
    return [linear.inputs * linear.outputs for linear in linears]


def _holes(shapes: Shapes, keys: Keys, what: Trained) -> int:
    """Bytes of freed blocks that glibc cannot use again: aligned requests seldom fit where one of their size was."""
    tokens = keys.sequences * keys.tokens
    blocks = (part.features * part.width * tokens for part in layer_saved(shapes, keys))
    small = sum(block for block in blocks if block < MAPPED)
    share = LORA_CHECKPOINTED if keys.method == "lora" and keys.checkpointing else HOLES.get(keys.method, HOLES["lora"])
    matrices = [FLOAT * size for size in _sizes(shapes, keys, what)]
    gradients = FLOAT * what.layers * what.layer if max(matrices) < MAPPED else 0
    return int(share * shapes.layers * small + GRADIENT_HOLES * gradients)
