"""Programs forked from one that has their imports behind it: they run as if alone, and end with whoever asked."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.warm import warm_python


@pytest.fixture
def python() -> Iterator[Path]:
    # a socket's path must be short, and a test's own directory need not be
    with tempfile.TemporaryDirectory() as place, warm_python(Path(sys.executable), Path(place), "json") as program:
        yield program


def gone(pid: int) -> bool:
    """Whether a process has ended; one whose parent has not looked yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_program_runs_with_its_arguments_and_its_exit_code(python: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys; print(sys.argv[1:], 'json' in sys.modules); sys.exit(3)")
    done = subprocess.run([python, program, "a", "b"], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode) == ("['a', 'b'] True\n", 3)


def test_a_program_ends_with_its_asker(python: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    asker = subprocess.Popen([python, program], stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None
    pid = int(asker.stdout.readline())
    assert not gone(pid)
    asker.kill()
    asker.wait()
    deadline = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < deadline, "it runs on"
        time.sleep(0.02)
