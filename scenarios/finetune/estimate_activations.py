"""What the backward pass needs of the forward pass: the tensors that autograd saves, as features a token.

Read off the modules of transformers 4.57 (Qwen2, Llama) and PEFT 0.18, operation by operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from scenarios.finetune.estimate_keys import Keys, adapted
from scenarios.finetune.estimate_shapes import Shapes

FLOAT, HALF = 4, 2


class Saved(NamedTuple):
    """A tensor of `features` a token, `width` bytes each."""

    features: int
    width: int


def layer_saved(shapes: Shapes, keys: Keys) -> Iterator[Saved]:
    """The tensors that one decoder layer saves."""
    product, stream = widths(shapes, keys)
    whole = keys.method != "lora"
    hidden, query, grouped = shapes.hidden, shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    targets = adapted(shapes, keys) if not whole else shapes.linears
    for names in (("q_proj", "k_proj", "v_proj"), ("up_proj", "gate_proj")):
        yield Saved(hidden, FLOAT)  # the residual stream, which the norm needs in float32
        if whole:
            yield Saved(hidden, stream)  # normalized: the norm's own weight is trained
        yield from _inputs([name for name in names if name in targets], hidden, shapes, keys)
    yield Saved(query, product)
    yield Saved(grouped, product)
    yield Saved(grouped, product)
    yield Saved(query, product)  # what attention returns, and o_proj reads
    if shapes.qk_norm:
        yield Saved(2 * (query + grouped), FLOAT)
    for _ in range(4 if shapes.gated else 2):  # gate, its activation, up, their product
        yield Saved(shapes.intermediate * (shapes.active if shapes.experts else 1), product)
    if not whole:
        yield from _adapters(shapes, keys)


def widths(shapes: Shapes, keys: Keys) -> tuple[int, int]:
    """Bytes of a number that a matrix product returns, and of one in the residual stream."""
    half = keys.pure or ((shapes.half or keys.bits is not None) and keys.method == "lora")
    return (HALF if half or keys.mixed else FLOAT), (HALF if half else FLOAT)


def _inputs(readers: list[str], hidden: int, shapes: Shapes, keys: Keys) -> Iterator[Saved]:
    """What the linear layers behind a norm save of their input: one tensor, or a 16-bit or float32 copy for each."""
    product, stream = widths(shapes, keys)
    if keys.mixed and not keys.pure:
        yield from (Saved(hidden, product) for _ in readers)
    elif keys.method == "lora" and stream == HALF and not keys.pure:
        yield from (Saved(hidden, FLOAT) for _ in readers)  # PEFT casts to the adapter's float32
    elif readers:
        yield Saved(hidden, stream)


def _adapters(shapes: Shapes, keys: Keys) -> Iterator[Saved]:
    """What LoRA saves beyond the model's own tensors, and DoRA beyond LoRA's."""
    product, stream = widths(shapes, keys)
    cast = stream == HALF and not keys.mixed and not keys.pure
    for name, linear in adapted(shapes, keys).items():
        yield Saved(keys.rank, FLOAT if cast else product)
        if cast and name in ("o_proj", "down_proj"):
            yield Saved(linear.inputs, FLOAT)
        if keys.dora:
            yield Saved(2 * linear.outputs, product)  # both results, which its magnitude scales


def attention_bytes(shapes: Shapes, keys: Keys) -> int:
    """Bytes of what grows with the square of the length, in one layer: masks, and scores where attention is eager.

    Where rows are padded, there is a mask, in float32, and grouped keys and values are repeated for each head.
    """
    square = keys.sequences * keys.tokens**2
    scores = 2 * FLOAT * shapes.heads * square if keys.eager else 0
    if not keys.masked:
        return scores
    product, _ = widths(shapes, keys)
    repeated = 2 * (shapes.heads - shapes.kv_heads) * shapes.head_dim * product * keys.sequences * keys.tokens
    return scores + product * square + repeated


def logit_copies(keys: Keys) -> int:
    """Bytes of all copies of one logit at the moment when most of them live.

    In float32: the softmax's result, its gradient from the loss, and the gradient that it passes on; what is saved of
    the logits themselves is freed before the backward pass. A reference's are made while the policy's are held.
    """
    if keys.stage == "rm":
        return 2 * FLOAT  # computed, and not used
    if keys.stage == "kto":
        return 7 * FLOAT  # good and bad answers are copied apart; the reference's are held while its KL part is made
    if keys.reference:
        return 5 * FLOAT
    copies = 3 if keys.stage != "dpo" else 4  # get_batch_logps slices the last token off, and so copies
    return (copies + (1 if keys.smoothed else 0)) * FLOAT
