"""What a recipe's keys mean for memory: LLaMA-Factory's defaults filled in, and which parameters it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from scenarios.finetune.estimate_shapes import Linear, Shapes

ALIGNED = 8  # LLaMA-Factory pads every batch to a multiple of 8 tokens
PAIRED = ("dpo", "rm")  # each row is two sequences: chosen and rejected
NO_REFERENCE = ("orpo", "simpo")


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe's keys as LLaMA-Factory 0.9.5 would take them.

    Attributes:
        sequences: In one forward pass: the batch, doubled where rows are pairs. tokens: of each, padded.
        accumulates: Whether gradients of several passes are summed, and so are there while the next is run.
        mixed: Whether matrix products run in 16 bits (bf16 or fp16). pure: Whether all else does so too (pure_bf16).
        masked: Whether attention needs a mask: where rows of unlike length are padded, or packed apart.
        bits: 4 or 8 for a quantized base model.
        eager: Whether attention scores are held in full (flash_attn: disabled).
    """

    method: str
    stage: str
    loss: str
    sequences: int
    tokens: int
    accumulates: bool
    checkpointing: bool
    optim: str
    mixed: bool
    pure: bool
    bits: int | None
    eager: bool
    masked: bool
    smoothed: bool
    rank: int
    targets: tuple[str, ...]
    dora: bool
    last_layers: int
    extra_modules: tuple[str, ...]
    special: str | None
    special_rank: int
    layerwise: bool

    @property
    def reference(self) -> bool:
        """Whether outputs of the untrained model are compared with; with adapters it is the model without them."""
        return self.stage == "kto" or (self.stage == "dpo" and self.loss not in NO_REFERENCE) or self.stage == "ppo"


def read_keys(keys: Mapping[str, Any], *, tokens: int | None = None) -> Keys:
    """The keys, with LLaMA-Factory's own defaults.

    Args:
        keys: Typed, as `arguments.canonical` returns them.
        tokens: The longest sequence of the data, where known; cutoff_len bounds it, and packing fills it.
    """
    cutoff = int(keys.get("cutoff_len", 2048))
    packed = bool(keys.get("packing") or keys.get("neat_packing"))
    longest = cutoff if packed or tokens is None else min(cutoff, tokens)
    stage = str(keys.get("stage", "sft"))
    batch = int(keys.get("per_device_train_batch_size", 8))
    special = next(
        (name for name in ("galore", "apollo", "badam", "adam_mini", "muon") if keys.get(f"use_{name}")), None
    )
    return Keys(
        method=str(keys.get("finetuning_type", "lora")),
        stage=stage,
        loss=str(keys.get("pref_loss", "sigmoid")),
        sequences=batch * (2 if stage in PAIRED else 1),
        tokens=-(-longest // ALIGNED) * ALIGNED,
        accumulates=int(keys.get("gradient_accumulation_steps", 1)) > 1,
        checkpointing=not keys.get("disable_gradient_checkpointing", False),
        optim=str(keys.get("optim", "adamw_torch_fused")),
        mixed=bool(keys.get("bf16") or keys.get("fp16")),
        pure=bool(keys.get("pure_bf16")),
        bits=int(keys["quantization_bit"]) if keys.get("quantization_bit") else None,
        eager=keys.get("flash_attn") == "disabled",
        masked=bool(keys.get("neat_packing")) or (not packed and batch * (2 if stage in PAIRED else 1) > 1),
        smoothed=float(keys.get("label_smoothing_factor") or 0) > 0,
        rank=int(keys.get("lora_rank", 8)),
        targets=_names(keys.get("lora_target", "all")),
        dora=bool(keys.get("use_dora")),
        last_layers=int(keys.get("freeze_trainable_layers", 2)),
        extra_modules=_names(keys.get("freeze_extra_modules", "")),
        special=special,
        special_rank=int(keys.get(f"{special}_rank", 16)) if special in ("galore", "apollo") else 0,
        layerwise=bool(special and keys.get(f"{special}_layerwise")),
    )


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """What is trained, in parameters.

    Attributes:
        embedding, head: Trained ones of embedding and output layer. layers: Decoder layers with trained weights.
        layer: Trained parameters of one such layer. through: Layers that gradients pass.
        adapter: Parameters that are added to the model's own (LoRA).
    """

    embedding: int
    head: int
    layers: int
    layer: int
    through: int
    adapter: int = 0

    @property
    def parameters(self) -> int:
        """All that are trained."""
        return self.embedding + self.head + self.layers * self.layer


def adapted(shapes: Shapes, keys: Keys) -> dict[str, Linear]:
    """The linear layers that get an adapter; `all` is every one but the output layer."""
    if "all" in keys.targets:
        return shapes.linears
    found = {name: linear for name, linear in shapes.linears.items() if name in keys.targets}
    return found or shapes.linears  # names of another architecture: the largest case


def trained(shapes: Shapes, keys: Keys) -> Trained:
    """What a training trains."""
    if keys.method == "full":
        rest = shapes.parameters - shapes.embedding - shapes.head - shapes.layers * shapes.layer
        embedding = shapes.embedding + max(0, rest)
        return Trained(
            embedding=embedding, head=shapes.head, layers=shapes.layers, layer=shapes.layer, through=shapes.layers
        )
    if keys.method == "freeze":
        layers = min(shapes.layers, abs(keys.last_layers))
        extra = bool(keys.extra_modules)  # the embeddings, often
        through = layers if keys.last_layers > 0 and not extra else shapes.layers
        embedding, head = (shapes.embedding, shapes.head) if extra else (0, 0)
        return Trained(embedding=embedding, head=head, layers=layers, layer=shapes.layer, through=through)
    linears = adapted(shapes, keys).values()
    layer = sum(keys.rank * linear.copies * (linear.inputs + linear.outputs) for linear in linears)
    if keys.dora:
        layer += sum(linear.copies * linear.outputs for linear in linears)
    every = shapes.layers
    return Trained(embedding=0, head=0, layers=every, layer=layer, through=every, adapter=every * layer)


def _names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value or ()
    return tuple(str(part).strip() for part in parts if str(part).strip())
