"""Is the candidate better than the best so far? Paired statistics, question by question; the only judge of a trial.

`levels` says how sure one comparison of a study has to be, `paired` tests one benchmark, `verdict` combines benchmarks
and decides, `race` says when a candidate can be dropped early, `planning` what a number of questions can show at all.
What is proved and what was measured, with the figures: docs/statistics.md; `make bench` measures them again.
"""

from agent.accept.levels import ALPHA, CANDIDATES, SINGLE, STUDY_ERROR, level
from agent.accept.paired import MAX_UNSCORED, Answers, Paired
from agent.accept.planning import HOPELESS, can_improve, decidable, default_samples, detectable, together
from agent.accept.race import futile, looks
from agent.accept.verdict import compare

__all__ = [
    "ALPHA",
    "CANDIDATES",
    "HOPELESS",
    "MAX_UNSCORED",
    "SINGLE",
    "STUDY_ERROR",
    "Answers",
    "Paired",
    "can_improve",
    "compare",
    "decidable",
    "default_samples",
    "detectable",
    "futile",
    "level",
    "looks",
    "together",
]
