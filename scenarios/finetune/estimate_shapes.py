"""The sizes of a decoder's parts, read from its config.json: what memory and time are estimated from; no torch.

Counted as Llama, Mistral, Qwen 2 and 3, Gemma, Phi and their mixtures of experts are built: attention with grouped
keys and values, a gated MLP, two norms a layer. What a config does not say is taken to be as in Llama.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

BIASED = ("qwen2", "qwen2_moe")  # their query, key and value layers have a bias, which no key of the config says
UNTIED = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "phi3")  # where it says nothing
UNGATED = ("gpt2", "gpt_neox", "gptj", "opt", "phi", "bloom", "starcoder2", "falcon")  # MLPs of two matrices
HALF = ("bfloat16", "float16")


class Linear(msgspec.Struct, frozen=True):
    """A linear layer: `inputs` and `outputs` features, `copies` of it a decoder layer (experts)."""

    inputs: int
    outputs: int
    copies: int = 1
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Of all its copies."""
        return self.copies * self.outputs * (self.inputs + (1 if self.bias else 0))


class Shapes(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder's sizes, in features and counts.

    Attributes:
        hidden: Width of the residual stream. intermediate: of the MLP (of one expert). vocab: Rows of the embedding.
        heads, kv_heads, head_dim: Of the attention; fewer kv_heads than heads is grouped-query attention.
        tied: Whether the output layer shares the embedding's weights. gated: Whether the MLP has a gate.
        experts: 0 for a dense model. active: experts that a token goes through.
        stored: Parameters in the weight files; None where only the config is known.
        half: Whether the weights are stored in 16 bits.
    """

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    bias: bool = False
    qk_norm: bool = False
    gated: bool = True
    experts: int = 0
    active: int = 1
    stored: int | None = None
    half: bool = False

    @property
    def linears(self) -> dict[str, Linear]:
        """The linear layers of one decoder layer, by the names that `lora_target` takes."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        copies = max(1, self.experts)
        found = {
            "q_proj": Linear(self.hidden, query, bias=self.bias),
            "k_proj": Linear(self.hidden, keys, bias=self.bias),
            "v_proj": Linear(self.hidden, keys, bias=self.bias),
            "o_proj": Linear(query, self.hidden),
            "up_proj": Linear(self.hidden, self.intermediate, copies),
            "down_proj": Linear(self.intermediate, self.hidden, copies),
        }
        if self.gated:
            found["gate_proj"] = Linear(self.hidden, self.intermediate, copies)
        if self.experts:
            found["gate"] = Linear(self.hidden, self.experts)  # the router
        return found

    @property
    def embedding(self) -> int:
        """Parameters of the embedding."""
        return self.vocab * self.hidden

    @property
    def head(self) -> int:
        """Parameters of an output layer of its own; 0 where it is the embedding."""
        return 0 if self.tied else self.embedding

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return sum(linear.parameters for linear in self.linears.values()) + norms

    @property
    def parameters(self) -> int:
        """All of them: what the weight files hold, or the sum of the parts."""
        return self.stored or self.embedding + self.head + self.layers * self.layer + self.hidden


def read_shapes(directory: Path, *, parameters: int | None = None, dtype: str | None = None) -> Shapes:
    """The shapes of a model directory.

    Args:
        directory: Holds config.json.
        parameters, dtype: As the weight files have them (`ModelInfo`), which the config only estimates.

    Raises:
        ValueError: It does not say how large the model is, or is no JSON object; the message names the key.
        OSError: There is no config.json.
    """
    config = json.loads((directory / "config.json").read_bytes())
    if not isinstance(config, dict):
        raise ValueError("config.json: a JSON object is needed")
    return shapes(config, parameters=parameters, dtype=dtype)


def shapes(config: Mapping[str, Any], *, parameters: int | None = None, dtype: str | None = None) -> Shapes:
    """The shapes that a config.json's content describes; as `read_shapes`."""
    nested = config.get("text_config")
    text = {**config, **nested} if isinstance(nested, Mapping) else dict(config)
    kind = str(text.get("model_type", ""))
    hidden = _count(text, "hidden_size", "n_embd", "d_model")
    heads = _count(text, "num_attention_heads", "n_head", "n_heads")
    experts = _optional(text, "num_local_experts", "num_experts", "n_routed_experts") or 0
    wide = _optional(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    tied = text.get("tie_word_embeddings")
    return Shapes(
        hidden=hidden,
        layers=_count(text, "num_hidden_layers", "n_layer", "num_layers"),
        intermediate=(_optional(text, "moe_intermediate_size") or wide) if experts else wide,
        heads=heads,
        kv_heads=_optional(text, "num_key_value_heads") or heads,
        head_dim=_optional(text, "head_dim") or max(1, hidden // heads),
        vocab=_count(text, "vocab_size"),
        tied=tied if isinstance(tied, bool) else kind not in UNTIED,
        bias=kind in BIASED or bool(text.get("attention_bias")),
        qk_norm=kind.startswith(("qwen3", "gemma3")),
        gated=kind not in UNGATED,
        experts=experts,
        active=_optional(text, "num_experts_per_tok") or 1,
        stored=parameters or None,
        half=(dtype or str(text.get("dtype") or text.get("torch_dtype") or "float32")) in HALF,
    )


def _count(text: Mapping[str, Any], *names: str) -> int:
    found = _optional(text, *names)
    if found is None:
        raise ValueError(f"config.json has no {names[0]}: a positive whole number is needed")
    return found


def _optional(text: Mapping[str, Any], *names: str) -> int | None:
    """The first of these keys that holds a positive whole number."""
    values = (text.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)
