"""A `python` of a locked environment with its costly imports behind it: OpenCompass needs seconds for them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORKED = Path(__file__).resolve().parent / "programs/forked.py"
OPENCOMPASS = ("opencompass.datasets", "opencompass.evaluator", "opencompass.models", "opencompass.tasks", "peft")


@contextmanager
def warm_python(python: Path, directory: Path, *modules: str) -> Iterator[Path]:
    """A program that runs others as `python` would, each in a process of its own, with these modules imported already.

    Args:
        directory: An empty one, with a short path.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "HF_HOME": str(directory / "huggingface"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"), "1"),
    }
    socket, program = directory / "socket", directory / "python"
    ask = shlex.join([sys.executable, "-I", "-S", str(FORKED), "run", str(socket)])
    program.write_text(f'#!/bin/sh\nexec {ask} "$@"\n')
    program.chmod(0o755)
    server = subprocess.Popen(
        [python, FORKED, "serve", socket, *modules], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield program
    finally:
        server.kill()
        server.communicate()
