"""What this machine can train on, found without torch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """Cores and memory of this machine; `gpus` holds the memory of each visible NVIDIA GPU. All in bytes."""

    cores: int
    memory: int
    gpus: tuple[int, ...] = ()

    @property
    def device_memory(self) -> int:
        """Memory of the smallest GPU, or of the machine where there is none."""
        return min(self.gpus, default=self.memory)

    def __str__(self) -> str:
        if self.gpus:
            return f"{len(self.gpus)} GPU with {self.device_memory / 2**30:.0f} GiB each"
        return f"CPU only, {self.cores} cores, {self.memory / 2**30:.0f} GiB"


def look() -> Hardware:
    """This machine's; a GPU counts where nvidia-smi lists it."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Hardware(cores=len(os.sched_getaffinity(0)), memory=pages, gpus=_gpus())


def _gpus() -> tuple[int, ...]:
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return ()
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(int(line) << 20 for line in listed.split() if line.isdigit())
