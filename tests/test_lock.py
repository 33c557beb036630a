"""The exact arguments of a job's container, for machines that tests cannot have too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.run import Job, Mount
from agent.run.gpus import environment_of_jobs, visible_gpus
from agent.run.lock import Limits, container_arguments, weaknesses

GOLDEN = Path(__file__).parent / "golden"
JOB = Job(
    name="study-0001-train",
    environment="train",
    argv=("llamafactory-cli", "train", "train.yaml"),
    cwd="/files/studies/s/trials/0001/train",
    log="/files/studies/s/trials/0001/train/train.log",
    deadline=3600,
    mounts=(Mount("/files/models/tiny"), Mount("/files/studies/s/trials/0001/train", writable=True)),
    variables={"OMP_NUM_THREADS": "8"},
    labels={"study": "s", "trial": "1", "stage": "train"},
)
CPU = {"NCPU": 16, "MemTotal": 64 << 30, "Runtimes": {"runc": {}}, "CpuCfsQuota": True}
GPU = CPU | {"Runtimes": {"runc": {}, "nvidia": {}}}
LIMITS = Limits(disk=100 * 10**9)


def arguments(engine: dict[str, Any], limits: Limits = LIMITS, **more: Any) -> dict[str, Any]:
    owner = "host/boot/namespace/pid/start"
    return container_arguments(
        JOB, "ftloop-train:abc", user="1000:1000", owner=owner, engine=engine, limits=limits, **more
    )


@pytest.mark.parametrize(
    ("name", "engine", "more"),
    [
        ("cpu", CPU, {}),
        ("gpu_all", GPU, {}),
        ("gpu_one", GPU, {"visible": "0"}),
        ("gpu_four", GPU, {"visible": "0,1,2,3"}),
        ("gpu_chosen", GPU, {"visible": "0,1,2,3", "gpus": "1,3"}),
        ("gpu_none", GPU, {"gpus": "none"}),
    ],
)
def test_the_container_is_exactly_this(name: str, engine: dict[str, Any], more: dict[str, Any]) -> None:
    text = json.dumps(arguments(engine, **more), indent=2, sort_keys=True) + "\n"
    path = GOLDEN / f"container_{name}.json"
    if os.environ.get("FTLOOP_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_a_job_below_root_gets_a_way_in() -> None:
    """Images keep /root to root; what a root caller has there is mounted behind a directory that others may enter."""
    below = msgspec.structs.replace(JOB, mounts=(Mount("/root/lab/models/tiny"), Mount("/root/lab/s", writable=True)))
    made = container_arguments(below, "i", user="1000:1000", owner="o", engine=CPU, limits=LIMITS)["mounts"]
    assert [(mount["Type"], mount["Target"]) for mount in made] == [
        ("volume", "/root"),
        ("bind", "/root/lab/models/tiny"),
        ("bind", "/root/lab/s"),
    ]
    assert made[0]["VolumeOptions"] == {"NoCopy": True}
    other = msgspec.structs.replace(JOB, mounts=(Mount("/rooted/lab"),))
    made = container_arguments(other, "i", user="1000:1000", owner="o", engine=CPU, limits=LIMITS)["mounts"]
    assert [mount["Type"] for mount in made] == ["bind"]


def test_without_a_gpu_runtime_only_ft_gpus_asks_for_one() -> None:
    assert arguments(CPU, visible="0,1")["device_requests"] == []
    assert arguments(CPU, gpus="0")["device_requests"], "the engine says what is missing"


def test_code_that_nobody_reviewed_gets_no_gpu() -> None:
    script = msgspec.structs.replace(JOB, untrusted=True)
    made = container_arguments(script, "i", user="1000:1000", owner="o", engine=GPU, limits=LIMITS, gpus="0")
    assert made["device_requests"] == []
    assert made["environment"]["NVIDIA_VISIBLE_DEVICES"] == "void"


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [
        (None, None, None),
        (None, "", ()),
        (None, "-1", ()),
        (None, "2, 0", ("2", "0")),
        (None, "1,-1,0", ("1",)),
        (None, "GPU-1a,MIG-2b", ("GPU-1a", "MIG-2b")),
        ("none", "0", ()),
        ("3", "0", ("3",)),
    ],
)
def test_which_gpus_jobs_see(gpus: str | None, visible: str | None, expected: tuple[str, ...] | None) -> None:
    assert visible_gpus(gpus, visible) == expected


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (None, {"CUDA_VISIBLE_DEVICES": "2,0", "LANG": "C"}),
        ("none", {"CUDA_VISIBLE_DEVICES": "", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "LANG": "C"}),
        ("1,3", {"CUDA_VISIBLE_DEVICES": "1,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "LANG": "C"}),
    ],
)
def test_ft_gpus_outranks_what_the_caller_sees(gpus: str | None, expected: dict[str, str]) -> None:
    assert environment_of_jobs({"CUDA_VISIBLE_DEVICES": "2,0", "LANG": "C"}, gpus) == expected


def test_limits_never_exceed_the_machine() -> None:
    generous = arguments(CPU, Limits(cpus=99))
    assert generous["nano_cpus"] == 16 * 10**9
    assert generous["mem_limit"] == 63 << 30
    assert generous["memswap_limit"] == generous["mem_limit"], "no swap on top"
    small = arguments(CPU | {"MemTotal": 4 << 30, "NCPU": 2}, Limits(cpus=1.5, memory=1 << 30, pids=64))
    assert (small["nano_cpus"], small["mem_limit"], small["pids_limit"]) == (1_500_000_000, 1 << 30, 64)
    assert arguments(CPU | {"MemTotal": 4 << 30})["mem_limit"] == 7 << 29, "an eighth is kept of a small machine"
    assert arguments(CPU | {"CpuCfsQuota": False})["nano_cpus"] is None
    assert [limit["Name"] for limit in arguments(CPU, Limits())["ulimits"]] == ["core"]


def test_an_engine_that_cannot_hold_a_job_is_recognised() -> None:
    held = {"MemoryLimit": True, "PidsLimit": True, "SecurityOptions": ["name=seccomp,profile=default"]}
    assert weaknesses(held) == []
    assert weaknesses(held | {"PidsLimit": False}) == ["limits on processes"]
    assert weaknesses(held | {"SecurityOptions": ["name=rootless"]}) == ["seccomp"]
