"""The demo for several proposer seeds: at least 9 of 10 must end better. About five minutes a seed on one core.

python tests/demo_seeds.py DIRECTORY [--seeds 10] [--at-once 2]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.journal import Journal  # noqa: E402
from agent.records import Sealed  # noqa: E402


def run(root: Path, seed: int, timeout: str) -> dict[str, Any]:
    """One demo study in a workspace of its own; what came of it."""
    home = root / f"seed-{seed}"
    home.mkdir(parents=True)
    command = [sys.executable, "agent/loop.py", "--dataset", "demo/reverse", "--runner", "local", "--proposer", "tpe"]
    with (home / "log").open("w") as log:
        done = subprocess.run(
            [*command, "--timeout", timeout, "--seed", str(seed)],
            cwd=ROOT,
            env={**_inherited(), "FT_FILE_PATH": str(home / "lab")},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    (path,) = (home / "lab" / "studies").glob("*/journal.jsonl")
    state = Journal(path).state
    sealed = state.result(state.best, "test", Sealed) if state.best is not None else None
    return {
        "seed": seed,
        "code": done.returncode,
        "trials": [round(trial.mean, 3) if trial.mean is not None else trial.verdict for trial in state.trials],
        "test": round(sealed.winner[0].mean, 3) if sealed else None,
        "verdict": sealed.comparison.verdict if sealed else "none",
        "minutes": round(state.seconds / 60, 1),
    }


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("FT_", "OPENAI_"))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--timeout", default="9m")
    options = parser.parse_args()
    better = 0
    with ThreadPoolExecutor(options.at_once) as pool:
        for result in pool.map(lambda seed: run(options.root, seed, options.timeout), range(options.seeds)):
            print(json.dumps(result), flush=True)
            better += result["verdict"] == "better"
    print(f"{better} of {options.seeds} seeds ended with a model that is better on the sealed test")
    return 0 if better >= 0.9 * options.seeds else 1


if __name__ == "__main__":
    sys.exit(main())
