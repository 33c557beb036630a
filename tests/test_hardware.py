"""Which GPUs a training would see, from what nvidia-smi prints and what CUDA_VISIBLE_DEVICES says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import hardware
from agent.hardware import Gpu, Hardware, free_memory, listed, look, visible

LISTING = """\
0, GPU-0a2b44d1-8c0e-6f1d-2a6d-000000000000, 24576
1, GPU-0a2b9f3e-1b7a-4c55-9d11-111111111111, 81559
3, GPU-77fe0c12-55aa-4e0b-8f3c-333333333333, 16384
"""
GPUS = listed(LISTING)
FIRST, SECOND, THIRD = GPUS


def test_the_listing_is_read() -> None:
    assert Gpu(index=3, uuid="GPU-77fe0c12-55aa-4e0b-8f3c-333333333333", memory=16 << 30) == THIRD
    assert [gpu.index for gpu in GPUS] == [0, 1, 3]


@pytest.mark.parametrize(
    "text", ["", "No devices were found", "0, GPU-1, [N/A]", "NVIDIA-SMI has failed, because, of", "0\n1\n"]
)
def test_what_is_no_gpu_of_known_memory_is_left_out(text: str) -> None:
    assert listed(text) == ()


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        (None, GPUS),
        ("", ()),
        ("-1", ()),
        ("none", ()),
        ("0", (FIRST,)),
        ("3", (THIRD,)),
        ("1, 0", (SECOND, FIRST)),
        ("2", ()),
        ("0,2,1", (FIRST,)),
        ("1,-1,0", (SECOND,)),
        ("0,0", ()),
        (FIRST.uuid, (FIRST,)),
        (f"{THIRD.uuid},{FIRST.uuid}", (THIRD, FIRST)),
        ("GPU-77", (THIRD,)),
        ("GPU-0a2b", ()),
        ("GPU-", ()),
        ("77fe0c12", ()),
    ],
)
def test_cuda_visible_devices_selects(chosen: str | None, seen: tuple[Gpu, ...]) -> None:
    assert visible(GPUS, chosen) == seen


def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A program of that name, first on the PATH."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def test_a_machine_has_the_gpus_that_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, f"cat <<'END'\n{LISTING}END")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware.look().gpus == (24 << 30, 81559 << 20, 16 << 30)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert hardware.look().gpus == (16 << 30,)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert hardware.look().gpus == ()


def test_a_machine_without_a_driver_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9")
    assert hardware.look().gpus == ()


def test_the_smallest_gpu_bounds_the_memory() -> None:
    machine = Hardware(cores=2, memory=1 << 30, gpus=tuple(gpu.memory for gpu in visible(GPUS, "0,1")))
    assert machine.device_memory == 24 << 30
    assert str(machine) == "2 GPU with 24 GiB each"
    assert str(Hardware(cores=2, memory=4 << 30)) == "CPU only, 2 cores, 4 GiB"


MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": "nothing of it\n"}, None),
        ({"proc/meminfo": MEMINFO}, 8_000_000 * 1024),
        ({"proc/meminfo": MEMINFO, "memory.max": "max", "memory.current": "5"}, 8_000_000 * 1024),
        ({"proc/meminfo": MEMINFO, "memory.max": "5000", "memory.current": "3000"}, 2000),
        (
            {"memory.max": "5000", "memory.current": "4000", "memory.stat": "anon 100\ninactive_file 1500\n"},
            2500,  # what is only cached is given back
        ),
        ({"memory/memory.limit_in_bytes": "900", "memory/memory.usage_in_bytes": "1000"}, 0),
    ],
)
def test_free_memory_is_the_machines_or_what_the_control_group_leaves(
    tmp_path: Path, files: dict[str, str], free: int | None
) -> None:
    for name, text in files.items():
        file = tmp_path / name if name.startswith("proc") else tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert free_memory(tmp_path) == free


def test_this_machines_free_memory_is_known() -> None:
    machine = look({})
    assert machine.free is not None
    assert 0 < machine.free <= machine.memory
