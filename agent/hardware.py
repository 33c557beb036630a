"""What this machine can train on, found without torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """Cores and memory of this machine; `gpus` holds the memory of each visible NVIDIA GPU. All in bytes.

    `free` is what programs could have of the memory just now, within the limit of this process; None if unknown.
    """

    cores: int
    memory: int
    gpus: tuple[int, ...] = ()
    free: int | None = None

    @property
    def device_memory(self) -> int:
        """Memory of the smallest GPU, or of the machine where there is none."""
        return min(self.gpus, default=self.memory)

    def __str__(self) -> str:
        if self.gpus:
            return f"{len(self.gpus)} GPU with {self.device_memory / 2**30:.0f} GiB each"
        return f"CPU only, {self.cores} cores, {self.memory / 2**30:.0f} GiB"


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as nvidia-smi lists it; `memory` in bytes."""

    index: int
    uuid: str
    memory: int


def look(environ: Mapping[str, str] = os.environ) -> Hardware:
    """This machine's; a GPU counts where nvidia-smi lists it and CUDA_VISIBLE_DEVICES does not hide it."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    seen = visible(listed(_nvidia_smi()), environ.get("CUDA_VISIBLE_DEVICES"))
    gpus = tuple(gpu.memory for gpu in seen)
    return Hardware(cores=len(os.sched_getaffinity(0)), memory=pages, gpus=gpus, free=free_memory())


def free_memory(system: Path = Path("/")) -> int | None:
    """Bytes that programs could have now without swapping, within the control group's limit; None if unknown.

    Args:
        system: Where proc/ and sys/ are.
    """
    found = [_field(system / "proc/meminfo", "MemAvailable:", 1024)]
    for limit, used, statistics, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        group = system / "sys/fs/cgroup"
        most, now = _field(group / limit), _field(group / used)
        if most is not None and now is not None:
            found.append(most - now + (_field(group / statistics, cache) or 0))
    known = [size for size in found if size is not None]
    return max(0, min(known)) if known else None


def _field(path: Path, name: str = "", unit: int = 1) -> int | None:
    """The number after a name at the beginning of a line, or the file's only one."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return None
    words = next((line[1:] if name else line for line in lines if not name or line[:1] == [name]), [])
    return int(words[0]) * unit if words and words[0].isdecimal() else None


def listed(text: str) -> tuple[Gpu, ...]:
    """The GPUs in lines of "index, uuid, memory in MiB"; one whose memory is not known is left out."""
    rows = ([field.strip() for field in line.split(",")] for line in text.splitlines())
    return tuple(
        Gpu(index=int(row[0]), uuid=row[1], memory=int(row[2]) << 20)
        for row in rows
        if len(row) == 3 and row[0].isdecimal() and row[2].isdecimal()
    )


def visible(gpus: tuple[Gpu, ...], chosen: str | None) -> tuple[Gpu, ...]:
    """The GPUs that a CUDA program sees.

    Args:
        chosen: CUDA_VISIBLE_DEVICES: None shows all; else indices or UUIDs, which may be shortened as long as they are
            unique. As in CUDA, whatever follows an entry that names no GPU (as -1) is hidden too, and a repeated entry
            hides all.
    """
    if chosen is None:
        return gpus
    found: list[Gpu] = []
    for entry in map(str.strip, chosen.split(",")):
        named = [gpu for gpu in gpus if entry == str(gpu.index) or (entry[:4] == "GPU-" and gpu.uuid.startswith(entry))]
        if len(named) != 1:
            break
        found += named
    return tuple(found) if len({gpu.index for gpu in found}) == len(found) else ()


def _nvidia_smi() -> str:
    """Its list of GPUs; empty where there is none, or no driver."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
