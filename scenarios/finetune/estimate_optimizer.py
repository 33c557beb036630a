"""What optimizers hold: their states, and what an update needs on top for a moment; in bytes."""

from __future__ import annotations

from typing import Literal

from scenarios.finetune.estimate_keys import Keys, Trained
from scenarios.finetune.estimate_shapes import Shapes

ADAM = 8.0
"""Bytes of two float32 moments of a parameter."""
EIGHT_BIT, FOUR_BIT = 2.06, 1.06  # two moments, and a float32 constant for each block of them
STATES = {  # bytes a trained parameter; what is not here has Adam's two moments
    "adagrad": 4.0,
    "rmsprop": 4.0,
    "sgd": 0.0,  # transformers sets no momentum
    "adamw_8bit": EIGHT_BIT,
    "adamw_bnb_8bit": EIGHT_BIT,
    "paged_adamw_8bit": EIGHT_BIT,
    "adamw_torch_8bit": EIGHT_BIT,
    "adamw_torch_4bit": FOUR_BIT,
    "lion_8bit": EIGHT_BIT / 2,
    "lion_32bit": 4.0,
}
IN_PLACE = ("adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit")
ADAFACTOR = 3  # float32 copies of one tensor's gradient that transformers' Adafactor makes
ALL_AT_ONCE = 4  # bytes a trained parameter: torch's updates on a GPU take all tensors together (foreach)


def state_bytes(shapes: Shapes, keys: Keys, what: Trained) -> int:
    """Bytes of the optimizer's states, undivided."""
    each = STATES.get(keys.optim, ADAM / 2 if keys.pure else ADAM)
    matrices = what.parameters if what.adapter else what.layers * _matrices(shapes)
    rest = what.parameters - matrices
    if keys.special == "badam":  # one layer at a time, and a float32 copy of it
        return int((each + 4) * shapes.layer)
    if keys.special == "adam_mini":  # one moment
        return int(each / 2 * what.parameters)
    if keys.special == "muon":  # one momentum for matrices, Adam for the rest
        return int((2 if keys.pure else 4) * matrices + each * rest)
    if keys.special and not what.adapter:  # GaLore and APOLLO
        return int(each * rest) + 4 * what.layers * _projected(shapes, keys.special_rank)
    if keys.optim == "adafactor":
        sides = sum(linear.copies * (linear.inputs + linear.outputs) for linear in shapes.linears.values())
        return 4 * (what.layers * sides + shapes.vocab + shapes.hidden)
    return int(each * what.parameters)


def update_bytes(keys: Keys, what: Trained, largest: int, device: Literal["cpu", "cuda"]) -> int:
    """Bytes that an update needs for a moment; `largest` is the size of the largest trained tensor."""
    if keys.optim in IN_PLACE:
        return 0
    if keys.optim == "adafactor":
        return 4 * ADAFACTOR * largest
    return ALL_AT_ONCE * what.parameters if device == "cuda" else 2 * 4 * largest


def _matrices(shapes: Shapes) -> int:
    """Parameters of a layer's linear layers."""
    return sum(linear.parameters for linear in shapes.linears.values())


def _projected(shapes: Shapes, rank: int) -> int:
    """Numbers that a layer's projected states hold: two moments of rank x the longer side, rank x the shorter one."""
    return sum(
        linear.copies * rank * (2 * max(linear.inputs, linear.outputs) + min(linear.inputs, linear.outputs))
        for linear in shapes.linears.values()
    )
