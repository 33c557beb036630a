"""Runs the real command line in a directory of its own, as a user would, with nothing of the tests' environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.journal import Journal, State, events
from agent.store import IndexEntry, Workspace

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class User:
    """Somebody at a shell in `home`, from where `agent/loop.py` is found as in a checkout."""

    home: Path

    def __post_init__(self) -> None:
        if not (self.home / "agent").exists():
            (self.home / "agent").symlink_to(ROOT / "agent")

    @property
    def workspace(self) -> Path:
        return self.home / "workspace"

    def start(self, *argv: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command with its output in one stream."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME") if name in os.environ}
        pip = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "DOCKER_"))}
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            argv,
            cwd=self.home,
            env={**kept, **pip, "PATH": path, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *argv: str, env: Mapping[str, str] | None = None, code: int = 0, timeout: float = 900) -> str:
        """Run a command to its end; its output."""
        process = self.start(*argv, env=env)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == code, f"exit code {process.returncode}, wanted {code}:\n{output}"
        return output

    def loop(self, *options: str, env: Mapping[str, str] | None = None, code: int = 0) -> str:
        """Run `python agent/loop.py`."""
        return self.run("python", "agent/loop.py", *options, env=env, code=code)

    def studies(self) -> list[IndexEntry]:
        return Workspace(self.workspace).index()

    def state(self) -> State:
        """The replayed journal of the only study."""
        (entry,) = self.studies()
        return Journal(Path(entry.path) / "journal.jsonl").state

    def endings(self) -> Counter[tuple[int, str, str]]:
        """(trial, stage, ending) of the only study's stages."""
        return Counter((e["trial"], e["stage"], e["ending"]) for e in self.events() if e["event"] == "stage ended")

    def events(self) -> list[dict[str, Any]]:
        (entry,) = self.studies()
        return list(events(Path(entry.path) / "journal.jsonl"))


def processes_below(root: Path) -> list[str]:
    """Command lines of the processes whose arguments or working directory lie below `root`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(root) in line or str(root) in str((process / "cwd").readlink()):
                found.append(line)
        except OSError:
            continue
    return found
