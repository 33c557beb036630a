"""Opens the gateway around a job whose answers a language model marks, and says what became of the judging."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from agent.accept import MAX_UNSCORED
from agent.errors import MachineError, TrialFailed
from agent.gateway import Door, Gateway
from agent.records import Question
from scenarios.finetune.results import unscored_share


@dataclass(frozen=True)
class Judges:
    """Who marks answers.

    Attributes:
        model: The judge's name; scores by different judges are different scores.
        gateway: Makes a gateway from the verdicts allowed and the directory for its transcript.
    """

    model: str
    gateway: Callable[[Sequence[str], Path], Gateway]


@dataclass
class Session:
    """One job's access to the judge; `door` is None for a benchmark without one."""

    door: Door | None
    model: str
    _gateway: Gateway | None

    def require_judge(self, name: str) -> None:
        """Raise where the judge could not be had, or had hardly anything to say.

        Raises:
            MachineError: It was down, slow, or refused us; predictions and verdicts so far are kept.
            TrialFailed: "judge": more than `MAX_UNSCORED` of its answers were no verdict.
        """
        if self._gateway is None:
            return
        report = self._gateway.report()
        if report.failure:
            raise MachineError(
                f"{name}: {report.failure} (FT_JUDGE_MODEL={self.model})",
                "mend the FT_JUDGE_ settings, or wait; the same command then judges only what is missing",
            )
        if report.unscored > MAX_UNSCORED * report.asked:
            said = f"; once it said {report.unclear!r}" if report.unclear else ""
            _no_verdicts(f"{name}: the judge {self.model}", report.unscored / report.asked, said)

    def account(self) -> dict[str, Any]:
        """What the judging took, for the score's settings; empty where no judge was asked."""
        if self._gateway is None:
            return {}
        report = self._gateway.report()
        return {
            "judging": {
                "model": self.model,
                "asked": report.asked,
                "cached": report.cached,
                "unscored": report.unscored,
                "unclear": report.unclear,
                "cost": report.usage.cost,
            }
        }


def require_scores(name: str, questions: Sequence[Question]) -> None:
    """TrialFailed("judge") where too many answers have no score, whyever."""
    if (share := unscored_share(questions)) > MAX_UNSCORED:
        _no_verdicts(name, share, "")


def _no_verdicts(who: str, share: float, said: str) -> NoReturn:
    reason = f"{who} gave no verdict on {share:.0%} of the answers, and {MAX_UNSCORED:.0%} may lack one{said}"
    raise TrialFailed("judge", reason)


@contextmanager
def session(judges: Judges | None, verdicts: Sequence[str], directory: Path) -> Iterator[Session]:
    """Access to the judge while one job runs; a benchmark without verdicts needs none."""
    if not verdicts:
        yield Session(None, "", None)
        return
    if judges is None:
        raise ValueError("a judged benchmark needs a judge: refused when the study is opened")
    gateway = judges.gateway(verdicts, directory)
    with gateway.open() as door:
        yield Session(door, judges.model, gateway)
