"""What a job's container is made with: the lock, the limits and the GPUs. Pure functions, held by golden files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent.run import Job
from agent.run.gpus import visible_gpus

if TYPE_CHECKING:
    from docker.types import DeviceRequest, Mount

OWNER_LABEL = "ftloop.owner"
JOB_LABEL = "ftloop.job"
HOME = "/home/ftloop"
PRIVATE = "/root"
UNPRIVILEGED = 1000
"""The uid and gid of a root caller's jobs."""
RESERVE = 1 << 30
"""Bytes of the machine's memory that jobs leave to everything else; at most an eighth of it."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one job may use.

    Attributes:
        memory: Bytes, what it keeps in /tmp, HOME and /dev/shm included. None: the machine's, less a reserve.
        cpus: Cores. None: all.
        pids: Processes and threads.
        disk: Bytes that it may write below its writable mounts. None: no limit.
    """

    memory: int | None = None
    cpus: float | None = None
    pids: int = 4096
    disk: int | None = None


def job_user() -> tuple[int, int]:
    """uid and gid of jobs: the caller's, but never root."""
    return (UNPRIVILEGED, UNPRIVILEGED) if os.getuid() == 0 else (os.getuid(), os.getgid())


def container_arguments(
    job: Job,
    image: str,
    *,
    user: str,
    owner: str,
    engine: Mapping[str, Any],
    limits: Limits,
    gpus: str | None = None,
    visible: str | None = None,
) -> dict[str, Any]:
    """Everything that a job's container is made with, but its name.

    Args:
        job: The job.
        image: The image of its environment.
        user: "uid:gid".
        owner: The process that owns it.
        engine: What the engine says about itself (`docker info`).
        limits: What the job may use.
        gpus: FT_GPUS.
        visible: CUDA_VISIBLE_DEVICES.
    """
    from docker.types import LogConfig, Ulimit
    from docker.types import Mount as Bind

    requests = [] if job.untrusted else gpu_requests(engine, gpus, visible)  # drivers are no wall for a stranger
    variables = {"HOME": HOME, "LANG": "C.UTF-8", "TMPDIR": "/tmp"}  # noqa: S108 - the container's
    if not requests:
        variables["NVIDIA_VISIBLE_DEVICES"] = "void"  # an image may say "all", which some engines obey
    memory = _memory(engine, limits)
    # A tmpfs may fill half of the limit, as on a machine of that size. exec: compiled GPU kernels are loaded from it.
    tmpfs = f"rw,exec,nosuid,nodev,mode=1777,size={memory // 2}" if memory else "rw,exec,nosuid,nodev,mode=1777"
    binds = [Bind(mount.path, mount.path, type="bind", read_only=not mount.writable) for mount in job.mounts]
    largest_file = [Ulimit(name="fsize", soft=limits.disk, hard=limits.disk)] if limits.disk else []
    return {
        "image": image,
        "command": list(job.argv),
        "entrypoint": [],
        "working_dir": job.cwd,
        "environment": variables | job.variables,
        "labels": {OWNER_LABEL: owner, JOB_LABEL: job.name} | {f"ftloop.{k}": v for k, v in job.labels.items()},
        "mounts": [*_way_in(job), *binds],
        "user": user,
        "network_mode": "none",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        "tmpfs": dict.fromkeys(("/tmp", HOME), tmpfs),  # noqa: S108
        "init": True,  # Python as PID 1 would ignore its own signals and leave zombies
        "log_config": LogConfig(type="none"),  # the log is ours, streamed to job.log
        "use_config_proxy": False,  # proxies may hold passwords
        "pids_limit": limits.pids,
        "mem_limit": memory,
        "memswap_limit": memory,  # the same: no swap on top of it
        "shm_size": memory // 2 if memory else None,
        "nano_cpus": _nano_cpus(engine, limits),
        "ulimits": [Ulimit(name="core", soft=0, hard=0), *largest_file],
        "oom_score_adj": 500,  # if the machine's memory runs out, it is the job that goes, not the loop
        "device_requests": requests,
    }


def gpu_requests(engine: Mapping[str, Any], gpus: str | None, visible: str | None) -> list[DeviceRequest]:
    """The GPUs that a job gets: what FT_GPUS says, else CUDA_VISIBLE_DEVICES, else all that the engine can give.

    An engine without a GPU runtime gives none, unless FT_GPUS asks for some: then its own error says what is missing.
    """
    from docker.types import DeviceRequest

    if gpus is None and "nvidia" not in (engine.get("Runtimes") or {}):
        return []
    chosen = visible_gpus(gpus, visible)
    if chosen is None:
        return [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return [DeviceRequest(device_ids=list(chosen), capabilities=[["gpu"]])] if chosen else []


def _way_in(job: Job) -> list[Mount]:
    """An empty volume at /root, which images keep closed to all but root, where a mount lies below it.

    It belongs to root, so that a job can pass but not write there; it is removed with the container. (A tmpfs would
    take over the mode of the directory below it.)
    """
    from docker.types import Mount

    if not any(Path(PRIVATE) in Path(mount.path).parents for mount in job.mounts):
        return []
    return [Mount(PRIVATE, None, type="volume", no_copy=True)]


def weaknesses(engine: Mapping[str, Any]) -> list[str]:
    """What an engine cannot enforce, of all that code which nobody reviewed must be held by."""
    limits = {"MemoryLimit": "memory limits", "PidsLimit": "limits on processes"}
    found = [name for key, name in limits.items() if engine.get(key) is False]
    if not any("seccomp" in option for option in engine.get("SecurityOptions") or ()):
        found.append("seccomp")
    return found


def _memory(engine: Mapping[str, Any], limits: Limits) -> int | None:
    total = int(engine.get("MemTotal") or 0)
    most = total - min(RESERVE, total // 8) if total else None
    return limits.memory or most


def _nano_cpus(engine: Mapping[str, Any], limits: Limits) -> int | None:
    cores = int(engine.get("NCPU") or 0)
    if not cores or engine.get("CpuCfsQuota") is False:  # a kernel without it refuses the container
        return None
    return int(1e9 * min(limits.cpus or cores, cores))
