"""What is to be trained and who says so: recipes, proposals, lessons."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a language model consumed.

    `cost` is in US dollars; None means that the model's price is not known.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        unknown = self.cost is None or other.cost is None
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost=None if unknown else (self.cost or 0.0) + (other.cost or 0.0),
        )


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What defines a training: LLaMA-Factory keys that a proposal may set, the data work, and the harness's seed.

    Attributes:
        script: A data script that makes the training data out of the study's; empty for none (docs/data-scripts.md).
        data: Declarative steps over the study's data, or over what the script wrote, in order.
    """

    train: dict[str, Value]
    seed: int = 42
    script: str = ""
    data: tuple[dict[str, Any], ...] = ()

    @property
    def prepares(self) -> bool:
        """Whether it trains on other rows than the study's own."""
        return bool(self.script or self.data)


Mode = Literal["", "draft", "improve", "debug"]


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """What to try next, why, and who says so (`author`: "tpe", "llm:gpt-4", ...).

    Attributes:
        mode: What kind of attempt it is: something new, a better version of its parent, or the mending of a parent that
            failed; empty where the proposer does not tell them apart.
        refused: Why earlier replies for it were refused, in a few words each.
    """

    hypothesis: str
    change: str  # in a few words: what differs from the parent
    recipe: Recipe
    author: str
    reason: str = ""
    expected: str = ""
    parent: int | None = None
    mode: Mode = ""
    refused: tuple[str, ...] = ()
    usage: Usage = Usage()


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial teaches the next ones, in about 100 tokens; never a verdict, which is the harness's."""

    text: str
    usage: Usage = Usage()
