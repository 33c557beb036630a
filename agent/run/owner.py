"""Names the process that owns a job, so that what it left behind can be told from what is still in use."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def this_process() -> str:
    """`host/boot/namespace/pid/start` of this process; equal names are the same process, not only the same pid."""
    pid = os.getpid()
    return f"{_here()}/{pid}/{_start(pid)}"


def is_dead(owner: str) -> bool:
    """Whether the owner named so is certainly gone; False where it cannot be judged from here.

    A process of another host or another pid namespace (a loop inside a container) cannot be seen from here.
    """
    try:
        host, boot, namespace, pid, start = owner.split("/")
        number = int(pid)
    except ValueError:
        return False
    here_host, here_boot, here_namespace = _here().split("/")
    if host != here_host:
        return False
    if boot != here_boot:
        return True
    return namespace == here_namespace and _is_gone(number, start)


def _here() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - the link's target is no path
    return f"{socket.gethostname()}/{boot}/{namespace}"


def _is_gone(pid: int, start: str) -> bool:
    try:
        return _start(pid) != start
    except FileNotFoundError:
        pass
    try:
        os.kill(pid, 0)  # /proc may hide other users' processes (hidepid)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _start(pid: int) -> str:
    """When a process started, in clock ticks since boot; "" for a zombie. FileNotFoundError if there is none."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
