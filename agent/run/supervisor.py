"""Starts one job and sees to it that nothing of the job outlives it; a program of its own, run by its path.

The parent writes one line of JSON to our stdin and keeps it open: when it closes, because the parent wants the job
stopped or was killed, every process of the job is ended. The job's exit code goes to our stdout as one line of JSON.

Processes that leave their group and session, or whose parent has died, stay below us: we are their subreaper
(prctl(2), PR_SET_CHILD_SUBREAPER). Standard library only, and few modules of it: this must start fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

TOKEN = "FTLOOP_JOB"  # noqa: S105 - the variable that marks every process of a job
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_POLL = 0.02


def descendants(root: int) -> list[int]:
    """Every process below `root`, zombies included."""
    children: dict[int, list[int]] = {}
    for pid in _processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib is slow
            parent = int(file.read().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(pid)
    found, unseen = [], [root]
    while unseen:
        below = children.get(unseen.pop(), [])
        found += below
        unseen += below
    return found


def marked(wanted: Callable[[str], bool]) -> dict[int, str]:
    """Processes whose environment holds a token that is `wanted`, with that token. Zombies have no environment."""
    prefix = TOKEN.encode() + b"="
    found = {}
    for pid in _processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            for variable in file.read().split(b"\0"):
                token = os.fsdecode(variable[len(prefix) :])
                if variable.startswith(prefix) and wanted(token):
                    found[pid] = token
    return found


def end(find: Callable[[], Iterable[int]], grace: float, collect: Callable[[], object] = lambda: None) -> None:
    """SIGTERM to all that `find` finds, SIGKILL to what is left after `grace` seconds, until nothing is found."""
    patience = time.monotonic() + grace
    told: set[int] = set()
    while pids := list(find()):
        late = time.monotonic() >= patience
        for pid in pids:
            if late or pid not in told:
                told.add(pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        collect()
        time.sleep(_POLL)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


class _Supervisor:
    """One job, from fork to the last of its descendants."""

    def __init__(self, spec: dict[str, Any], parent: int) -> None:
        self._spec = spec
        self._parent = parent
        self._code: int | None = None
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._job = self._start()

    def wait(self, control: int) -> int | None:
        """Until the job has ended, or the parent says so or is gone. Exit code, negative for a signal."""
        while self._code is None and os.getppid() == self._parent:
            ready, _, _ = select.select([control, self._wake], [], [], 1.0)
            if control in ready:
                break
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._collect()
        end(lambda: descendants(os.getpid()), self._spec["grace"], self._collect)
        return self._code

    def _start(self) -> int:
        """Load ctypes' prctl before the fork: the child only makes system calls."""
        prctl = ctypes.CDLL(None).prctl
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() == supervisor:
                    self._become_job()
            finally:
                os._exit(127)
        return pid

    def _become_job(self) -> NoReturn:
        spec = self._spec
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write("500")  # if memory runs out, it is the job that goes, not the loop
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)  # our stderr is the job's log
        try:
            os.chdir(spec["cwd"])
            os.execve(spec["program"], spec["argv"], spec["environment"])  # noqa: S606 - no shell is meant
        except OSError as error:
            os.write(2, f"cannot start {spec['program']!r}: {error}\n".encode())
            os._exit(127)

    def _collect(self) -> None:
        """Take the exit status of every child that has one; orphans of the job are our children too."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._job:
                    self._code = os.waitstatus_to_exitcode(ended[1])


def _main() -> None:
    parent = os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return  # the parent died while it wrote
    code = _Supervisor(json.loads(line), parent).wait(control=0)
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"code": code}), flush=True)


if __name__ == "__main__":
    _main()
