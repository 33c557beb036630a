"""A race: a candidate is scored in growing blocks of questions, and dropped as soon as it cannot win.

Dropping can never make a candidate "better", so it costs no error; it saves most of the questions that candidates no
better than the best would be asked. When one cannot win says `agent.accept.race`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import accept
from agent.accept import Answers, Paired
from agent.records import Question, Score
from agent.verdicts import Load, paired, total
from scenarios.finetune.results import Unusable, read_answers
from scenarios.finetune.splits import Item


@dataclass(frozen=True)
class Race:
    """A candidate on its way through the benchmarks, against the best so far.

    Attributes:
        number: Which comparison of the study this is, from 1 on.
        done: What the candidate has answered in full, a pair a benchmark. planned: questions of each benchmark.
        best: The best model's answers to the benchmark in hand. samples: answers a question there.
        later: The benchmarks still to come, without an answer.
    """

    number: int
    done: tuple[Paired, ...]
    best: Answers
    samples: int
    later: tuple[Paired, ...]
    planned: tuple[int, ...]

    def futile(self, answered: Sequence[Question]) -> bool:
        """Whether a candidate with these answers to the benchmark in hand cannot be expected to win any more."""
        so_far = {question.id: question.score for question in answered}
        best = {name: self.best[name] for name in so_far}
        now = Paired("", so_far, best, samples=self.samples, best_samples=self.samples)
        return accept.futile([*self.done, now, *self.later], self.planned, candidate=self.number)


def race(done: Sequence[Score], incumbent: Sequence[Score], number: int, load: Load) -> Race:
    """The race on the benchmark that comes after those that are done."""
    here = incumbent[len(done)]
    return Race(
        number=number,
        done=tuple(paired(new, old, load) for new, old in zip(done, incumbent, strict=False)),
        best=load(here),
        samples=here.samples,
        later=tuple(
            Paired(score.benchmark, {}, {}, samples=score.samples, best_samples=score.samples)
            for score in incumbent[len(done) + 1 :]
        ),
        planned=tuple(total(score) for score in incumbent),
    )


class Watcher:
    """Looks at a running job's answers, block by block; what it returns ends the job.

    Args:
        race: Whom the candidate is raced against. output: the job's output directory.
        items: All questions that the job was given. samples: answers a question.
    """

    def __init__(self, race: Race, output: Path, items: Sequence[Item], samples: int) -> None:
        self._race, self._output, self._items, self._samples = race, output, items, samples
        self._ahead = list(accept.looks(len(items))[:-1])  # after the last block there is nothing to save
        self._size = 0
        self.dropped: tuple[Question, ...] = ()

    def __call__(self) -> str | None:
        """Why the job is to be ended now; None while it may go on."""
        if not self._ahead or not self._grown():
            return None
        try:
            answered = read_answers(self._output, self._items, self._samples)
        except Unusable:  # judged when the job has ended
            return None
        while self._ahead and self._ahead[0] <= len(answered):
            block = answered[: self._ahead.pop(0)]
            if any(question.score is not None for question in block) and self._race.futile(block):
                self.dropped = block
                return f"dropped after {len(block)} of {len(self._items)} questions"
        return None

    def _grown(self) -> bool:
        try:
            size = (self._output / "answers.jsonl").lstat().st_size
        except OSError:
            return False
        grown, self._size = size > self._size, size
        return grown
