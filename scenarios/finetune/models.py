"""What a model directory holds, read from its config and its safetensors headers; no torch, no weights in memory."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import UsageError

WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors", "pytorch_model*.bin", "adapter_model*.bin")
PARTS = (  # what else decides how the model answers
    *("*config.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template*"),
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tiktoken.model")
CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
PATHS = ("_name_or_path", "base_model_name_or_path", "revision")  # where a config says where it once lay
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
NO_ADAPTER = ("embed", "wte", "wpe", "lm_head")
LONGEST_HEADER = 100_000_000  # as in the safetensors library itself
ACTIVATIONS = 1 << 30


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model directory, or an adapter's.

    Attributes:
        architecture: Class name from config.json ("Qwen2ForCausalLM"); the base's for an adapter, "" if unknown.
        parameters: Number of stored weights. bytes: Size of the weight files.
        dtype: The most frequent one ("bfloat16", ...). context: Context length in tokens, 0 if the config has none.
        layers: Hidden layers, 0 if unknown. chat_template: Whether the tokenizer brings one.
        linear: Rows plus columns of all linear layers, which times its rank is an adapter's size; 0 if unknown.
        adapter: True for a PEFT adapter; `base` is then the path or name of the model that it belongs to.
    """

    path: str
    architecture: str
    parameters: int
    bytes: int
    dtype: str
    context: int
    layers: int
    chat_template: bool
    adapter: bool = False
    base: str | None = None
    linear: int = 0

    @property
    def name(self) -> str:
        """The directory's name."""
        return Path(self.path).name

    @property
    def memory(self) -> int:
        """Bytes that a LoRA training needs at least: half-precision weights, adapter and activations."""
        return int(self.parameters * 2.5) + ACTIVATIONS


def inspect(directory: Path) -> ModelInfo:
    """What is in a model directory.

    Raises:
        UsageError: It is no complete model; the message says what is missing.
    """
    if not directory.is_dir():
        raise UsageError(f"model {directory} is not a directory", "give a model's directory, or its name on the hub")
    if (directory / "adapter_config.json").exists():
        return _adapter(directory)
    config = _json(directory / "config.json", f"model {directory} has no config.json")
    weights = _weights(directory)
    if not any((directory / name).exists() for name in TOKENIZERS):
        raise UsageError(f"model {directory} has no tokenizer", f"one of {', '.join(TOKENIZERS)} is needed")
    text = {**config, **(config["text_config"] if isinstance(config.get("text_config"), dict) else {})}
    named = str(text.get("dtype") or text.get("torch_dtype") or "float32")
    parameters, dtype = _parameters(weights, named)
    architectures = config.get("architectures")
    return ModelInfo(
        path=str(directory),
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "",
        parameters=parameters,
        bytes=sum(path.stat().st_size for path in weights),
        dtype=dtype,
        context=_first(text, CONTEXT),
        layers=_first(text, LAYERS),
        chat_template=_has_chat_template(directory),
        linear=_linear(weights),
    )


def weights_hash(directory: Path) -> str:
    """sha256 over the weights, configs and tokenizer of a model or adapter, by name and content.

    Where the files lie does not matter, nor where an adapter's config says that its base lies.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if not path.is_file() or not any(fnmatchcase(path.name, pattern) for pattern in (*WEIGHTS, *PARTS)):
            continue
        digest.update(f"{path.name}\0".encode())
        if path.name in ("config.json", "adapter_config.json"):
            digest.update(hashlib.sha256(_canonical_config(path)).digest())
            continue
        with path.open("rb") as source:
            digest.update(hashlib.file_digest(source, "sha256").digest())
    return digest.hexdigest()


def _canonical_config(path: Path) -> bytes:
    """A config without paths; PEFT writes a set of module names in any order, so those are sorted."""
    config = {key: value for key, value in _json(path, "").items() if key not in PATHS}
    if isinstance(targets := config.get("target_modules"), list):
        config["target_modules"] = sorted(map(str, targets))
    return json.dumps(config, sort_keys=True).encode()


def _adapter(directory: Path) -> ModelInfo:
    config = _json(directory / "adapter_config.json", "")
    weights = [path for pattern in WEIGHTS[1::2] for path in sorted(directory.glob(pattern))]
    if not weights:
        raise UsageError(f"adapter {directory} has no weights", "adapter_model.safetensors is missing")
    parameters, dtype = _parameters(weights, "float32")
    base = config.get("base_model_name_or_path")
    return ModelInfo(
        path=str(directory),
        architecture="",
        parameters=parameters,
        bytes=sum(path.stat().st_size for path in weights),
        dtype=dtype,
        context=0,
        layers=0,
        chat_template=_has_chat_template(directory),
        adapter=True,
        base=base if isinstance(base, str) else None,
    )


def _weights(directory: Path) -> list[Path]:
    """The weight files, all shards of them."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        index = directory / f"{pattern.replace('*', '')}.index.json"
        if index.exists():
            shards = _json(index, "").get("weight_map")
            names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
            if missing := [name for name in names if not (directory / Path(name).name).exists()]:
                raise UsageError(
                    f"model {directory} lacks {', '.join(missing)}", "the download is incomplete: repeat it"
                )
            if names:
                return [directory / Path(name).name for name in names]
        if found := sorted(directory.glob(pattern)):
            return found
    raise UsageError(f"model {directory} has no weights", "model.safetensors (or its shards) is missing")


def _parameters(weights: list[Path], named: str) -> tuple[int, str]:
    """Number of weights and their most frequent dtype; .bin files are estimated from their size."""
    counts: dict[str, int] = {}
    for path in weights:
        if path.suffix == ".bin":
            counts[named] = counts.get(named, 0) + path.stat().st_size // BYTES.get(named, 4)
            continue
        for _, dtype, shape in _tensors(path):
            counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    most = max(counts, key=lambda dtype: counts[dtype]) if counts else named
    return sum(counts.values()), names.get(most, most)


def _linear(weights: list[Path]) -> int:
    """Rows plus columns of the matrices that get an adapter: all but embeddings and the output layer."""
    return sum(
        sum(shape)
        for path in weights
        if path.suffix != ".bin"
        for name, _, shape in _tensors(path)
        if len(shape) == 2 and not any(part in name for part in NO_ADAPTER)
    )


def _tensors(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, dtype and shape of each tensor, from the header: 8 bytes of length, then JSON."""
    try:
        with path.open("rb") as source:
            (length,) = struct.unpack("<Q", source.read(8))
            if length > LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(source.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        if path.stat().st_size < 8 + length + end:
            raise ValueError("it ends too early")
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, str(entry["dtype"]), [int(size) for size in entry["shape"]]
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UsageError(f"{path} is not a whole safetensors file: {error}", "fetch the model again") from error


def _has_chat_template(directory: Path) -> bool:
    if (directory / "chat_template.jinja").exists() or (directory / "chat_template.json").exists():
        return True
    config = directory / "tokenizer_config.json"
    return config.exists() and bool(_json(config, "").get("chat_template"))


def _first(config: dict[str, Any], keys: tuple[str, ...]) -> int:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), 0)


def _json(path: Path, missing: str) -> dict[str, Any]:
    if not path.exists():
        raise UsageError(missing, "a model directory holds config.json, weights and a tokenizer")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error})", "fetch the model again") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: wanted a JSON object", "fetch the model again")
    return value
