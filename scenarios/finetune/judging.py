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
from agent.records import Question, Usage
from scenarios.finetune.results import unscored_share


@dataclass(frozen=True)
class Judges:
    """Who marks answers.

    Attributes:
        model: The judge's name. address: of its endpoint.
        gateway: Makes a gateway from the verdicts allowed and the directory for its transcript.
    """

    model: str
    gateway: Callable[[Sequence[str], Path], Gateway]
    address: str = ""

    @property
    def identity(self) -> str:
        """Scores by different judges are different scores; what a server calls itself is not enough to tell them."""
        return f"{self.model} at {self.address}" if self.address else self.model


@dataclass
class Session:
    """One job's access to the judge; `door` is None for a benchmark without one."""

    door: Door | None
    model: str
    _gateway: Gateway | None

    def require_judge(self, name: str) -> None:
        """MachineError where the judge was down or refused us; predictions and verdicts so far are kept."""
        if self._gateway and (failure := self._gateway.report().failure):
            raise MachineError(
                f"{name}: {failure} (FT_JUDGE_MODEL={self.model})",
                "mend the FT_JUDGE_ settings, or wait; the same command then judges only what is missing",
            )

    def require_in_time(self, name: str, seconds: float, *, predicted: bool) -> None:
        """MachineError where it was the judge that made a job last so long that it had to be stopped.

        Args:
            seconds: That the job took.
            predicted: Whether all answers were there, so that the judge alone was waited for.
        """
        if self._gateway is None:
            return
        report = self._gateway.report()
        if (report.pending and predicted) or report.waited > seconds / 2:
            raise MachineError(
                f"{name}: not done after {seconds:.0f} s (FT_BENCHMARK_TIMEOUT): {report.waited:.0f} s of them went to "
                f"the judge (FT_JUDGE_MODEL={self.model}), which gave {report.answered} verdicts",
                "take a faster judge, or a longer FT_BENCHMARK_TIMEOUT; the same command judges only what is missing",
            )

    def require_verdicts(self, name: str) -> None:
        """TrialFailed("judge") where more than `MAX_UNSCORED` of the judge's answers were no verdict."""
        if self._gateway is None:
            return
        report = self._gateway.report()
        if report.unscored > MAX_UNSCORED * report.asked:
            said = f"; once it said {report.unclear!r}" if report.unclear else ""
            _no_verdicts(f"{name}: the judge {self.model}", report.unscored / report.asked, said)

    @property
    def usage(self) -> Usage:
        """What the judging consumed so far, attempts in vain included."""
        return self._gateway.report().usage if self._gateway else Usage()

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
def session(judges: Judges | None, verdicts: Sequence[str], directory: Path, samples: int) -> Iterator[Session]:
    """Access to the judge while one job runs, which has so many answers; a benchmark without verdicts needs none."""
    if not verdicts:
        yield Session(None, "", None)
        return
    if judges is None:
        raise ValueError("a judged benchmark needs a judge: refused when the study is opened")
    gateway = judges.gateway(verdicts, directory)
    with gateway.open(samples) as door:
        yield Session(door, judges.model, gateway)
