"""The base model that is taken where none is named: by hardware, benchmarks and licence, from the disk or the list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.hardware import Hardware
from scenarios.finetune.choose import Choice, choose, lora_memory, read_list
from scenarios.finetune.estimate_shapes import shapes
from scenarios.finetune.files import MARKER
from tests.test_models import make_model

LARGE = 1 << 60


def machine(gib: float, gpus: int = 0) -> Hardware:
    memory = int(gib * 2**30)
    return Hardware(cores=8, memory=memory if not gpus else 128 << 30, gpus=(memory,) * gpus)


def chosen(root: Path, hardware: Hardware, *skills: Any, room: int = LARGE) -> Choice:
    return choose(root, hardware, set(skills or ("general",)), cutoff_len=2048, room=room)


def carded(directory: Path, licence: str) -> Path:
    (directory / "README.md").write_text(f"---\nlicense: {licence}\ntags: [text]\n---\n# A model\n")
    return directory


# The list


def test_the_list_says_what_it_holds() -> None:
    known = read_list()
    assert known.models
    for model in known.models:
        assert shapes(model.config).parameters == pytest.approx(model.parameters, rel=0.002), model.id
        assert model.licence in known.free
        assert model.good_at
    assert len({model.id for model in known.models}) == len(known.models)


@pytest.mark.parametrize(
    ("gib", "name"), [(8, "Qwen/Qwen3-0.6B"), (16, "Qwen/Qwen3-4B"), (24, "Qwen/Qwen3-8B"), (80, "Qwen/Qwen3-14B")]
)
def test_of_the_list_the_largest_that_fits_into_the_gpu(tmp_path: Path, gib: float, name: str) -> None:
    found = chosen(tmp_path, machine(gib, gpus=1), "math")
    assert (found.name, found.path) == (name, None)
    listed = {model.id: lora_memory(shapes(model.config), "cuda", 2048) for model in read_list().models}
    assert listed[name] < gib * 2**30
    assert found.reason == (
        f"the largest of the list of {read_list().date} that trains with LoRA in {gib:.0f} GiB, apache-2.0"
    )


def test_the_smallest_gpu_decides(tmp_path: Path) -> None:
    mixed = Hardware(cores=8, memory=128 << 30, gpus=(80 << 30, 8 << 30))
    assert chosen(tmp_path, mixed).name == "Qwen/Qwen3-0.6B"


def test_what_is_not_good_at_the_benchmarks_is_not_taken_from_the_list(tmp_path: Path) -> None:
    for skills in (("math",), ("code",), ("general",), ("math", "code")):
        name = chosen(tmp_path, machine(23, gpus=1), *skills).name
        good_at = {model.id: set(model.good_at) for model in read_list().models}[name]
        assert good_at >= set(skills)


def test_without_a_gpu_a_small_one_is_taken_however_much_memory_there_is(tmp_path: Path) -> None:
    found = chosen(tmp_path, machine(512))
    assert found.name == "Qwen/Qwen3-0.6B"
    assert "without a GPU" in found.reason


def test_where_nothing_fits_the_smallest_is_named_with_what_it_needs(tmp_path: Path) -> None:
    found = chosen(tmp_path, machine(1))
    assert found.name == "Qwen/Qwen3-0.6B"
    assert "the smallest of the list" in found.reason
    assert "although LoRA needs about" in found.reason


def test_a_download_that_the_disk_cannot_hold_is_not_begun(tmp_path: Path) -> None:
    assert chosen(tmp_path, machine(80, gpus=1), room=10_000_000_000).name == "Qwen/Qwen3-4B"


def test_longer_sequences_leave_room_for_a_smaller_model(tmp_path: Path) -> None:
    def at(cutoff_len: int) -> str:
        return choose(tmp_path, machine(24, gpus=1), {"math"}, cutoff_len=cutoff_len, room=LARGE).name

    assert (at(2048), at(16384)) == ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B")


# The disk


def test_the_largest_fitting_chat_model_on_disk_is_chosen(tmp_path: Path) -> None:
    make_model(tmp_path / "small", hidden=8)
    make_model(tmp_path / "organisation/large", hidden=64)
    make_model(tmp_path / "larger-without-template", hidden=128, template=False)
    make_model(tmp_path / "encoder", hidden=256, architectures=["BertModel"])
    make_model(tmp_path / "broken", hidden=256).joinpath("model.safetensors").unlink()
    found = chosen(tmp_path, machine(8))
    assert (found.name, found.path) == ("organisation/large", tmp_path / "organisation/large")
    assert found.reason == (
        f"the largest of 3 in {tmp_path} with a chat template that trains with LoRA in 8 GiB, its licence is not stated"
    )
    assert chosen(tmp_path, machine(0.001)).path is None


def test_demo_models_and_hidden_directories_are_never_chosen(tmp_path: Path) -> None:
    (make_model(tmp_path / "demo/tiny", hidden=32) / MARKER).write_text("{}")
    make_model(tmp_path / ".making/model", hidden=64)
    make_model(tmp_path / "organisation/.partial", hidden=64)
    assert chosen(tmp_path, machine(8)).path is None
    mine = make_model(tmp_path / "mine", hidden=8)
    found = chosen(tmp_path, machine(8))
    assert found.path == mine
    assert "the only model" in found.reason


@pytest.mark.parametrize("licence", ["llama3.2", "cc-by-nc-4.0", "other\nlicense_name: lab-research", "[mit, gemma]"])
def test_a_licence_that_is_not_free_is_taken_only_when_named(tmp_path: Path, licence: str) -> None:
    carded(make_model(tmp_path / "lab/large", hidden=64), licence)
    carded(make_model(tmp_path / "lab/small", hidden=8), "Apache-2.0")
    found = chosen(tmp_path, machine(8))
    assert found.name == "lab/small"
    assert found.reason.endswith(", apache-2.0")
    (passed,) = found.passed_over
    assert passed.startswith("lab/large: ")
    assert passed.endswith("taken only when named")


def test_a_known_name_has_its_licence_whatever_its_card_says(tmp_path: Path) -> None:
    carded(make_model(tmp_path / "meta-llama/Llama-3.2-1B-Instruct"), "mit")
    found = chosen(tmp_path, machine(8))
    assert found.path is None
    assert found.passed_over == ("meta-llama/Llama-3.2-1B-Instruct: Llama community licence, taken only when named",)


@pytest.mark.parametrize(
    "text", ["", "---\n", "---\n- a\n---\n", "---\nlicense: [1, {}]\n---\n", "---\n: : [\n---\n", "\x00"]
)
def test_a_card_that_says_nothing_leaves_the_licence_open(tmp_path: Path, text: str) -> None:
    (make_model(tmp_path / "mine") / "README.md").write_text(text)
    found = chosen(tmp_path, machine(8))
    assert found.name == "mine"
    assert "not stated" in found.reason


def test_a_specialist_on_disk_is_put_behind_for_another_task(tmp_path: Path) -> None:
    make_model(tmp_path / "Qwen/Qwen2.5-Coder-7B-Instruct", hidden=64)
    make_model(tmp_path / "mine", hidden=8)
    assert chosen(tmp_path, machine(8), "code").name == "Qwen/Qwen2.5-Coder-7B-Instruct"
    found = chosen(tmp_path, machine(8), "math")
    assert found.name == "mine"
    assert "for math" in found.reason


def test_memory_is_estimated_from_the_config(tmp_path: Path) -> None:
    """A wide vocabulary needs memory for its logits however few weights there are."""
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 1_000_000,
    }
    make_model(tmp_path / "wide", hidden=64, **sizes)
    make_model(tmp_path / "narrow", hidden=8, **sizes | {"vocab_size": 100})
    found = chosen(tmp_path, machine(8))
    assert found.name == "narrow"
    assert chosen(tmp_path, machine(64)).name == "wide"


def test_what_is_on_disk_but_too_large_is_said(tmp_path: Path) -> None:
    make_model(tmp_path / "mine")
    found = chosen(tmp_path, machine(0.5))
    assert found.path is None
    assert [line.split(":")[0] for line in found.passed_over] == ["mine"]
