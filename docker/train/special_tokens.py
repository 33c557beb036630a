"""Gives a model tokens of its own: adds them, and starts their rows as something better than noise.

A row is a token's line in the embedding matrix, and in the output matrix where that is another one. Runs inside the
train environment; imports nothing of ftloop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to become of which tokens.

    Attributes:
        tokens: Token -> description; those that the tokenizer lacks are added.
        replaced: Text in the data -> the model's token that stands for it, which starts anew too.
        how: What a row starts as: the "mean" of all rows, of those of its "description", of similar words
            ("semantic"), or the mean of the last two ("combined").
        similar: Token -> words. noise: deviation of what is added, as a share of that of all rows.
    """

    tokens: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    how: str = "mean"
    similar: Mapping[str, Sequence[str]] = field(default_factory=dict)
    noise: float = 0.0
    seed: int = 0

    @property
    def fresh(self) -> list[str]:
        """Every token whose row starts anew."""
        return list(dict.fromkeys([*self.tokens, *self.replaced.values()]))


def install(model: Any, tokenizer: Any, wanted: Wanted) -> list[int]:
    """Add what is missing, start the rows, and return the ids of all tokens concerned.

    Raises:
        ValueError: A text is to be replaced by something that is no single token of the model.
    """
    import torch

    known = len(tokenizer)
    tokenizer.add_tokens([token for token in wanted.tokens if token not in tokenizer.get_vocab()], special_tokens=True)
    for text, token in wanted.replaced.items():
        ids = tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(
                f"replace_text: {text!r} is to become {token!r}, which is {len(ids)} tokens of the model, not one; "
                "name one that it has, or add it with special_tokens"
            )
    ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in wanted.fresh]
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(wanted.seed)
    with torch.no_grad():
        for weight in _matrices(model):
            old = [index for index in range(known) if index not in set(ids)]  # rows behind these belong to no token
            rows = weight[old].float()
            mean, deviation = rows.mean(0), rows.std(0)
            for index, token in zip(ids, wanted.fresh, strict=True):
                start = _start(weight, tokenizer, token, wanted, mean, known, set(ids))
                noise = torch.randn(start.shape, generator=generator).to(start.device) * deviation * wanted.noise
                weight[index] = (start + noise).to(weight.dtype)
    return ids


def parts_of(model: Any, ids: Sequence[int]) -> dict[str, list[int]]:
    """Module name -> rows, as PEFT's `trainable_token_indices` has them: embeddings, and an output layer of its own."""
    modules = [model.get_input_embeddings()]
    if not _tied(model):
        modules.append(model.get_output_embeddings())
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    return {names[id(module)]: list(ids) for module in modules}


def replace(text: str, replaced: Mapping[str, str]) -> str:
    """The text with every stand-in in its place, the longest first."""
    for old in sorted(replaced, key=len, reverse=True):
        text = text.replace(old, replaced[old])
    return text


def _start(weight: Any, tokenizer: Any, token: str, wanted: Wanted, mean: Any, known: int, fresh: set[int]) -> Any:
    """What a token's row starts as, in float32."""

    def of(texts: Sequence[str]) -> Any:
        ids = [index for text in texts for index in tokenizer.encode(text, add_special_tokens=False)]
        if not (usable := [index for index in ids if index < known and index not in fresh]):
            raise ValueError(f"init_special_tokens: no token of the model is in what {token!r} is to be like: {texts}")
        return weight[usable].float().mean(0)

    if wanted.how == "mean":
        return mean
    described = of([wanted.tokens[token]]) if wanted.how in ("description", "combined") else None
    similar = of(list(wanted.similar[token])) if wanted.how in ("semantic", "combined") else None
    if described is not None and similar is not None:
        return (described + similar) / 2
    return described if similar is None else similar


def _matrices(model: Any) -> list[Any]:
    found = [model.get_input_embeddings().weight]
    return found if _tied(model) else [*found, model.get_output_embeddings().weight]


def _tied(model: Any) -> bool:
    output = model.get_output_embeddings()
    return output is None or output.weight is model.get_input_embeddings().weight
