"""Which failures of a job are the machine's: they end the call, and are no finding about a recipe or a model."""

from __future__ import annotations

from agent.errors import MachineError
from agent.run import EnvironmentName, Outcome

INCOMPLETE = "the {environment} environment lacks what the program needs: delete that environment, it is built again"
GPU = "check the GPU with nvidia-smi"
BROKEN = (  # what no recipe can cause: words that the program says, and what to do
    ("No space left on device", "free some disk space"),
    ("Disk quota exceeded", "free some disk space"),
    ("ModuleNotFoundError", INCOMPLETE),
    ("ImportError", INCOMPLETE),
    ("NVIDIA driver", GPU),
    ("No CUDA GPUs are available", GPU),
    ("uncorrectable ECC error", GPU),
)


def raise_if_broken(what: str, environment: EnvironmentName, outcome: Outcome, said: str) -> None:
    """MachineError where the machine is to blame for a job that failed.

    Args:
        what: The job in a few words, for the message.
        environment: What it ran in.
        outcome: How it ended. said: The program's own reason.
    """
    if outcome.kind == "lost":
        raise MachineError(
            f"{what} was lost: {outcome.reason}",
            f"bring the engine back and run the same command again; the log so far: {outcome.log}",
        )
    if outcome.kind == "full":
        raise MachineError(f"{what}: the job {outcome.reason}", f"free some disk space; the log: {outcome.log}")
    for words, hint in BROKEN:
        if words in said and outcome.kind not in ("timeout", "oom", "disk"):
            hint = hint.format(environment=environment)
            raise MachineError(f"{what} failed: {said}", f"{hint}; the log: {outcome.log}")
