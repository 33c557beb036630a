"""The demo's untrained model, for tests of real trainings."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_tiny_model(python: Path, directory: Path) -> Path:
    """Write it to `directory` with the interpreter of a locked environment; about 5 seconds."""
    subprocess.run(
        [python, ROOT / "docker/train/make_demo_model.py", directory],
        check=True,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
    )
    return directory
