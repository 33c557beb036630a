"""What can go wrong, and what each of it means for the study.

    FtloopError                 ends the call; one message, one hint, one exit code
    ├── UsageError        2     what the user typed, set or laid on disk is wrong
    │   └── SettingError        ... found out only because trial after trial failed in the same words
    ├── MachineError      3     the machine cannot: engine gone, disk full, hub or endpoint out of reach
    ├── StudyError        4     the study cannot be continued: corrupt journal, in use by another process
    ├── ProposerError     5     five proposals in a row stayed invalid
    ├── CellsFailed       6     a sweep has gone through its grid, and some of its cells have no result
    └── RunFailed         6     a training or an evaluation by hand failed
    TrialFailed                 ends the trial only: a finding, recorded and shown to the next proposal
    BudgetEnded                 ends the call cleanly: the stage in hand is recorded as stopped

Ctrl-C is Python's own KeyboardInterrupt and exits with 130. Exit code 1 is left to defects of ftloop itself.
"""

from __future__ import annotations


class FtloopError(Exception):
    """An error that a user can act on.

    Args:
        message: What is wrong and where (file, key, line).
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


class UsageError(FtloopError):
    """What the user typed, set or laid on disk is wrong."""

    exit_code = 2


class SettingError(UsageError):
    """What was set lets every trial fail alike; known only after some of them."""


class MachineError(FtloopError):
    """The machine, an engine, the hub or an endpoint cannot do what is needed."""

    exit_code = 3


class StudyError(FtloopError):
    """The study's own files forbid to go on: a corrupt journal, or another process at work on it."""

    exit_code = 4


class ProposerError(FtloopError):
    """Too many proposals in a row stayed invalid."""

    exit_code = 5


class CellsFailed(FtloopError):
    """A sweep has gone through its grid, and some of its cells have no result; the others do."""

    exit_code = 6


class RunFailed(FtloopError):
    """A training or an evaluation that a person asked for failed; what it left is recorded."""

    exit_code = 6


class TrialFailed(Exception):
    """This attempt failed; the study goes on.

    Args:
        kind: One of `agent.records.FailureKind`.
        reason: One or a few lines for the journal, the terminal and the next proposal.
        tail: The end of the job's log, where there is one.
    """

    def __init__(self, kind: str, reason: str, tail: str = "") -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason
        self.tail = tail


class BudgetEnded(Exception):
    """The call's budget is spent.

    Args:
        reason: For a person.
        pause: True where the user asked for some stages only: the search is not over, the test split stays sealed.
    """

    def __init__(self, reason: str, *, pause: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause = pause
