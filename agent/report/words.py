"""The wording that every view shares, and the cleaning of text that a model, a data set or a log wrote.

All functions are pure and give plain text: no markup of any terminal or format. Anything untrusted goes through `clean`
or `clean_block`, and where it goes into Markdown through `markdown` or `fence`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from agent.records import (
    Comparison,
    Confirmation,
    Contamination,
    Failure,
    Proposal,
    Recipe,
    Score,
    Trial,
    Usage,
    Verdict,
)

ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movements
    r"|(?:\x1b[\]PX^_]|[\x90\x9d\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS: titles, links, clipboard
    r"|\x1b[ -/]*[0-~]"
)
INVISIBLE = {"Cc", "Cf", "Cs", "Co"}  # controls; bidi overrides and zero-width; surrogates; private use
FAILURES: dict[str, str] = {
    "proposal": "no valid proposal",
    "check": "refused by the checks",
    "data": "the data could not be prepared",
    "mini-run": "failed in the mini-run",
    "train:oom": "out of memory in training",
    "train:timeout": "training ran out of time",
    "train:exit": "training failed",
    "bench": "could not be scored",
    "judge": "the judge failed",
}
SYMBOLS: dict[str, str] = {"better": "▲", "tie": "=", "worse": "▼", "unscored": "?", "undecidable": "?", "failed": "✗"}
STYLES: dict[str, str] = {"better": "bold green", "worse": "yellow", "failed": "red", "unscored": "red"}
RELATIONS: dict[Verdict, str] = {
    "better": "better than",
    "tie": "tie with",
    "worse": "worse than",
    "unscored": "unscored against",
    "undecidable": "undecidable against",
}


def clean(text: str, limit: int = 200) -> str:
    """One harmless line of at most `limit` characters: no escapes, controls, bidi overrides or line breaks."""
    visible = "".join(map(_visible, ESCAPES.sub("", text[: 50 * limit])))
    line = " ".join(visible.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def clean_block(text: str, lines: int = 20, width: int = 200) -> str:
    """The last lines of a log, each cleaned; what a progress bar overwrote with a carriage return is left out."""
    kept = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    rows = ["".join(map(_visible, ESCAPES.sub("", line[: 50 * width]).expandtabs(4))).rstrip() for line in kept]
    while rows and not rows[-1]:
        rows.pop()
    return "\n".join(row if len(row) <= width else row[: width - 1] + "…" for row in rows[-lines:])


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace() or category in {"Zl", "Zp"}:
        return " "
    return "" if category in INVISIBLE else character


def markdown(text: str, limit: int = 200) -> str:
    """Untrusted text as one line of Markdown that shows exactly its characters: no link, image, HTML or table cell."""
    line = re.sub(r"[\\`*{}\[\]<>#|!~$@]|:(?=//)", r"\\\g<0>", clean(text, limit))
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # inside a word an underscore is literal anyway
    line = line.replace("&", "&amp;")
    line = re.sub(r"(?i)\bwww\.", lambda match: match[0][:-1] + r"\.", line)
    line = re.sub(r"^(\d+)([.)])", r"\1\\\2", line)
    return re.sub(r"^[-+=]", r"\\\g<0>", line)


def fence(text: str, language: str = "") -> str:
    """A Markdown code block that its content cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def duration(seconds: float) -> str:
    """ "0.4 s", "42 s", "3 min 20 s", "2 h 05 min", "1 d 3 h"."""
    if seconds < 0.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock(seconds: float) -> str:
    """A duration that is still running, without tenths: "0 s", "42 s", "3 min 20 s"."""
    return duration(math.floor(seconds)) if seconds >= 1 else "0 s"


def score(value: Score) -> str:
    """ "0.873 ± 0.027 [0.81, 0.92] n=150, 3 without an answer, 1 unscored"; marks are named as well."""
    digits = _digits(value.low, value.high)
    interval = f"[{value.low:.{digits}f}, {value.high:.{digits}f}]"
    remarks = (
        f"{value.samples} answers each" if value.samples > 1 else "",
        f"{value.unformatted} without an answer" if value.unformatted else "",
        f"{value.unscored} unscored" if value.unscored else "",
        f"asked {value.asked} of {value.planned}" if value.asked is not None else "",
        clean(value.marked),
    )
    return ", ".join([f"{value.mean:.3f} ± {value.stderr:.3f} {interval} n={value.n}", *filter(None, remarks)])


def setting(value: Score) -> str:
    """ "zero-shot", "5-shot"."""
    shots = value.settings.get("fewshot", 0)
    return f"{shots}-shot" if shots else "zero-shot"


def by_setting(base: Sequence[Score], others: Sequence[Score], winner: Sequence[Score]) -> list[str]:
    """ "base zero-shot 0.100 (45 without an answer), 5-shot 0.310; winner zero-shot 0.400", a line a benchmark.

    What tells the form of an answer, which examples show as well, from what was learned beyond it. Only for benchmarks
    that the base was scored on at several settings.
    """

    def told(value: Score) -> str:
        odd = f" ({value.unformatted} without an answer)" if value.unformatted else ""
        return f"{setting(value)} {value.mean:.3f}{odd}"

    lines = []
    for best in base:
        beside = [one for one in others if one.benchmark == best.benchmark]
        if not beside:
            continue
        asked = sorted([best, *beside], key=lambda one: int(one.settings.get("fewshot", 0)))
        won = [f"winner {told(one)}" for one in winner if one.benchmark == best.benchmark]
        name = f"{clean(best.benchmark, 40)}: " if len(base) > 1 else ""
        lines.append(name + "; ".join([f"base {', '.join(map(told, asked))}", *won]))
    return lines


def confirmed(found: Sequence[Confirmation]) -> list[str]:
    """ "mean 0.412, from 0.398 to 0.431, of 3 more seeds; 3 of 3 better than base", and what failed."""
    means = [one.mean for one in found if one.mean is not None]
    compared = [one.comparison for one in found if one.comparison]
    better = sum(comparison.verdict == "better" for comparison in compared)
    lines = []
    if means:
        spread = f"mean {sum(means) / len(means):.3f}, from {min(means):.3f} to {max(means):.3f}"
        lines.append(f"{spread}, of {count(len(means), 'more seed')}; {better} of {len(compared)} better than base")
    lines += [f"seed {one.seed} failed: {failure(one.failure)}" for one in found if one.failure]
    return lines


def saved(trials: Iterable[Trial]) -> str:
    """ "53% of 450 questions saved: 2 of 3 candidates dropped early"; empty where none was."""
    compared = [trial.comparison for trial in trials if trial.comparison]
    dropped = [one for one in compared if one.asked is not None]
    if not dropped:
        return ""
    planned = sum(one.planned or one.n for one in compared)
    unasked = sum((one.planned or 0) - (one.asked or 0) for one in dropped)
    return (
        f"{unasked / planned:.0%} of {planned:,} questions saved: "
        f"{len(dropped)} of {count(len(compared), 'candidate')} dropped early"
    )


def contamination(found: Contamination | None) -> str:
    """ "12 of 7,473 rows hold questions of gsm8k: removed (FT_CONTAMINATION=remove)"."""
    if found is None:
        return "not checked"
    return f"{found.summary}: {found.done}" if found.flagged else f"none of {found.rows:,} rows holds a question"


def mean(scores: Sequence[Score]) -> str:
    """ "0.873 ± 0.027": the mean over the benchmarks and its standard error; "!" behind it where one is marked."""
    if not scores:
        return "no score"
    middle = sum(s.mean for s in scores) / len(scores)
    error = math.sqrt(sum(s.stderr**2 for s in scores)) / len(scores)
    return f"{middle:.3f} ± {error:.3f}" + ("!" if any(s.marked for s in scores) else "")


def difference(comparison: Comparison) -> str:
    """ "+0.87 [+0.79, +0.93]": candidate minus best, with its interval."""
    digits = _digits(comparison.low, comparison.high)
    return (
        f"{_signed(comparison.difference, digits)} "
        f"[{_signed(comparison.low, digits)}, {_signed(comparison.high, digits)}]"
    )


def _digits(low: float, high: float) -> int:
    return 2 if high - low >= 0.1 else 3


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # + 0.0 turns a rounded -0.0 into 0.0


def outcome(trial: Trial) -> str:
    """The verdict, or "failed": a key of `SYMBOLS` and `STYLES`."""
    return trial.comparison.verdict if trial.comparison else "failed"


def verdict(trial: Trial) -> str:
    """ "better than base", "tie with trial 3", "failed: out of memory in training"."""
    if trial.comparison:
        return ", ".join(filter(None, [relation(trial.comparison), dropped(trial.comparison)]))
    return f"failed: {FAILURES[trial.failure.kind]}" if trial.failure else "failed"


def relation(comparison: Comparison) -> str:
    """ "better than base"."""
    return f"{RELATIONS[comparison.verdict]} {clean(comparison.against, 30)}"


def dropped(comparison: Comparison) -> str:
    """ "dropped after 132 of 660 questions"; empty where all were asked."""
    return "" if comparison.asked is None else f"dropped after {comparison.asked:,} of {comparison.planned:,} questions"


def failure(value: Failure, limit: int = 200) -> str:
    """ "out of memory in training: CUDA out of memory ..."."""
    return clean(f"{FAILURES[value.kind]}: {value.reason}", limit)


def change(proposal: Proposal | None, limit: int = 100) -> str:
    """What differs from the parent, in one line."""
    return clean(proposal.change, limit) if proposal else ""


def recipe(trained: Recipe | None, limit: int = 300) -> str:
    """What was really trained with, key by key, whatever the proposer called it."""
    if trained is None:
        return ""
    parts = [f"{key} {value}" for key, value in sorted(trained.train.items())]
    work = ["a script"] * bool(trained.script) + [str(step.get("step")) for step in trained.data]
    return clean(", ".join([*parts, *([f"data by {' and '.join(work)}"] if work else [])]), limit)


def hypothesis(proposal: Proposal | None, limit: int = 200) -> str:
    """Why the proposer thought that it would help, in one line."""
    return clean(proposal.hypothesis, limit) if proposal else ""


def subject(trial: int) -> str:
    """ "base", "trial 3"."""
    return f"trial {trial}" if trial else "base"


def best(number: int | None, means: Mapping[int, str]) -> str:
    """ "trial 3, 0.873 ± 0.027", or that the base is unbeaten; `means` by trial number, 0 for the base."""
    name = f"trial {number}" if number else "the base"
    value = means.get(number or 0)
    return f"{name}, {value}" if value else name


def tally(trials: Iterable[Trial]) -> str:
    """ "1 better, 4 ties, 1 failed", in the order of `SYMBOLS`."""
    outcomes = [outcome(trial) for trial in trials]
    plural = {"tie": "ties"}
    counted = [(name, outcomes.count(name)) for name in SYMBOLS]
    return ", ".join(f"{n} {plural.get(name, name) if n > 1 else name}" for name, n in counted if n)


def count(number: int, noun: str) -> str:
    """ "1 trial", "3 trials"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def usage(value: Usage) -> str:
    """Calls, tokens and cost of the proposer's language model; an unknown cost says so."""
    if not value.calls:
        return "no language model was called"
    cost = "cost unknown: the model's price is not known" if value.cost is None else f"${value.cost:,.2f}"
    return f"{count(value.calls, 'call')}, {value.prompt_tokens:,} + {value.completion_tokens:,} tokens, {cost}"


def detectable(trials: Iterable[Trial]) -> str:
    """What the search could have found; the least sensitive comparison counts."""
    compared = [t.comparison for t in trials if t.comparison and t.comparison.verdict != "unscored"]
    if not compared:
        return "No candidate was compared with the base, so nothing can be said about what would have been found."
    gain, questions = max((one.detectable, one.planned or one.n) for one in compared)
    if vain := [one for one in compared if one.verdict == "undecidable" or one.detectable >= 1.0]:
        asked = max(one.planned or one.n for one in vain)
        where = "" if len(vain) == len(compared) else f" in {len(vain)} of {len(compared)} comparisons"
        return (
            f"So few questions ({asked:,}), or so few of them left to win, decide nothing{where}: there, even an "
            "interval above zero may be luck. What would help: more questions (FT_BENCHMARK_LIMIT, "
            "FT_SEARCH_BENCHMARKS), or more answers to each (FT_BENCHMARK_SAMPLES)."
        )
    return (
        f"A true gain of {gain:.2f} or more would have been found with 80% power "
        f"in every comparison ({count(questions, 'question')}); smaller ones may have gone unseen."
    )


def openings(number: int, trials: Iterable[Trial]) -> str:
    """How clean the look at the test split was: candidates that were compared, winners that it was opened for."""
    compared = sum(trial.comparison is not None for trial in trials)
    of = f"for the best of {count(compared, 'candidate')}"
    if number <= 1:
        return f"sealed from the search, opened once, {of}"
    return (
        f"{of}; the test split has been opened for {number} winners by now, "
        "so read the interval as optimistic: only the first look was clean"
    )
