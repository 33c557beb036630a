import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from agent.errors import UsageError
from scenarios.finetune.models import inspect, weights_hash

CONFIG = {"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 1024, "num_hidden_layers": 4}


def write_safetensors(path: Path, shapes: dict[str, list[int]], dtype: str = "F32") -> None:
    size = {"F32": 4, "BF16": 2}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        length = size
        for extent in shape:
            length *= extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))


def make_model(directory: Path, hidden: int = 8, template: bool = True, **config: Any) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    (directory / "tokenizer.json").write_text("{}")
    if template:
        (directory / "chat_template.jinja").write_text("{{ messages }}")
    write_safetensors(directory / "model.safetensors", {"embed": [10, hidden], "norm": [hidden]})
    return directory


def test_a_model_is_read_from_its_config_and_headers(tmp_path: Path) -> None:
    model = inspect(make_model(tmp_path / "tiny"))
    assert (model.name, model.architecture, model.parameters, model.dtype) == (
        "tiny",
        "Qwen2ForCausalLM",
        88,
        "float32",
    )
    assert (model.context, model.layers, model.chat_template, model.adapter) == (1024, 4, True, False)
    assert model.bytes == (tmp_path / "tiny/model.safetensors").stat().st_size


def test_shards_and_nested_configs_are_read(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "big", text_config={"max_position_embeddings": 32768, "num_hidden_layers": 28})
    (directory / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        write_safetensors(directory / name, {"weight": [3, 5]}, dtype="BF16")
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", names, strict=True))})
    )
    model = inspect(directory)
    assert (model.parameters, model.dtype, model.context, model.layers) == (30, "bfloat16", 32768, 28)
    (directory / names[1]).unlink()
    with pytest.raises(UsageError, match="lacks model-00002-of-00002"):
        inspect(directory)


def test_an_adapter_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/models/base", "r": 8}))
    with pytest.raises(UsageError, match="has no weights"):
        inspect(tmp_path)
    write_safetensors(tmp_path / "adapter_model.safetensors", {"lora_A": [8, 4]})
    model = inspect(tmp_path)
    assert model.adapter
    assert (model.base, model.parameters) == ("/models/base", 32)


@pytest.mark.parametrize(
    ("missing", "words"),
    [("config.json", "no config.json"), ("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_what_a_model_lacks_is_named(tmp_path: Path, missing: str, words: str) -> None:
    directory = make_model(tmp_path / "tiny")
    (directory / missing).unlink()
    with pytest.raises(UsageError, match=words):
        inspect(directory)
    with pytest.raises(UsageError, match="not a directory"):
        inspect(tmp_path / "nothing")


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_a_torn_weight_file_is_named(tmp_path: Path, cut: int) -> None:
    weights = make_model(tmp_path / "tiny") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    with pytest.raises(UsageError, match=r"model\.safetensors is not a whole safetensors file"):
        inspect(tmp_path / "tiny")


def test_the_hash_is_of_content_not_of_place_or_time(tmp_path: Path) -> None:
    one, two = (
        make_model(tmp_path / "one", _name_or_path="/a"),
        make_model(tmp_path / "elsewhere/two", _name_or_path="/b"),
    )
    os.utime(two / "model.safetensors", (0, 0))
    (two / "training_args.bin").write_bytes(b"differs")
    assert weights_hash(one) == weights_hash(two)
    write_safetensors(two / "model.safetensors", {"embed": [10, 8], "norm": [8]}, dtype="BF16")
    assert weights_hash(one) != weights_hash(two)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_whatever_decides_the_answers_is_hashed(tmp_path: Path, name: str) -> None:
    before = weights_hash(make_model(tmp_path / "tiny"))
    (tmp_path / "tiny" / name).write_text('{"changed": 1}')
    assert weights_hash(tmp_path / "tiny") != before


def test_an_adapters_hash_ignores_where_its_base_lies_and_the_order_of_a_set(tmp_path: Path) -> None:
    hashes = []
    for name, targets, rank in (("a", ["q", "v"], 8), ("b", ["v", "q"], 8), ("c", ["v", "q"], 16)):
        directory = tmp_path / name
        directory.mkdir()
        config = {"base_model_name_or_path": f"/{name}", "target_modules": targets, "r": rank}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        write_safetensors(directory / "adapter_model.safetensors", {"lora_A": [8, 4]})
        hashes.append(weights_hash(directory))
    assert hashes[0] == hashes[1] != hashes[2]
