"""report.md and its plots, written when a study pauses.

Everything that a proposal or a log says is shown as text: escaped in prose and tables, fenced in blocks.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.records import SEARCHED, Score, StudyReport, Trial
from agent.report import plots, use, words

REPORT = "report.md"
SCORES_PLOT = "report-scores.svg"
LOSSES_PLOT = "report-loss.svg"


def write_report(report: StudyReport, directory: str | Path, *, base_path: str | None = None) -> Path:
    """Write report.md and its SVG plots into `directory`, each atomically and the report last; return its path."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {SCORES_PLOT: plots.scores_svg(report), LOSSES_PLOT: plots.losses_svg(report)}
    for name, svg in pictures.items():
        if svg is not None:
            _replace(folder / name, svg)
    drawn = tuple(name for name, svg in pictures.items() if svg is not None)
    _replace(folder / REPORT, report_text(report, drawn, base_path=base_path).encode())
    return folder / REPORT


def _replace(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, never a half of it."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def report_text(report: StudyReport, plots_drawn: Sequence[str] = (), *, base_path: str | None = None) -> str:
    """The report as Markdown; `plots_drawn` names the pictures that lie beside it."""
    sections = [
        _head(report),
        _result(report, base_path),
        _picture(SCORES_PLOT, "Score over trials", plots_drawn),
        _trials(report),
        _recipe(report),
        _picture(LOSSES_PLOT, "Training loss", plots_drawn),
        _failures(report),
        _lessons(report),
        _method(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(report: StudyReport) -> str:
    identity = report.identity
    limit = "all questions" if identity.limit is None else f"at most {words.count(identity.limit, 'question')} a split"
    made = sorted((name, value) for name, value in identity.generation.items() if name != SEARCHED)
    generation = ", ".join(f"{name} {value}" for name, value in made)
    rows = [
        ("Data set", f"{words.markdown(identity.dataset)} (fingerprint `{identity.dataset_fingerprint[:12]}`)"),
        ("Base model", f"{words.markdown(identity.model)} (fingerprint `{identity.model_fingerprint[:12]}`)"),
        ("Benchmarks", f"{words.markdown(', '.join(identity.benchmarks))}, {limit}"),
        *([("Searched with", words.markdown(identity.pool))] if identity.pool else []),
        ("Generation", words.markdown(generation, 400) or "each benchmark's own settings"),
        ("Contamination", words.markdown(words.contamination(report.contamination), 600)),
        ("Base score", "<br>".join(_base(report)) or "not yet"),
        ("Trials", _tally(report)),
        ("Proposer", words.markdown(words.usage(report.usage))),
        *([("Judge", words.markdown(words.usage(report.judging)))] if report.judging.calls else []),
        *([("Ended", words.markdown(report.ending))] if report.ending else []),
        ("Directory", _code(report.directory)),
    ]
    return f"# Study {words.markdown(report.study)}\n\n" + _table(("Asked", ""), rows)


def _base(report: StudyReport) -> Iterator[str]:
    """The base's scores to beat; where it was scored at several settings, each with its setting."""
    several = len(report.base) > 1
    for score in report.base:
        others = [other for other in report.others if other.benchmark == score.benchmark]
        told = _score(score, several=several)
        yield f"{told}, {words.setting(score)}, the one to beat" if others else told
        for other in others:
            yield f"{_score(other, several=several)}, {words.setting(other)}"


def _tally(report: StudyReport) -> str:
    tally = words.tally(report.trials)
    spent = f"{len(report.trials)} in {words.duration(report.active_seconds)}"
    return f"{spent} ({tally})" if tally else spent


def _score(score: Score, *, several: bool) -> str:
    return f"{words.markdown(score.benchmark, 40)}: {words.score(score)}" if several else words.score(score)


def _code(text: str) -> str:
    """A path as inline code, also inside a table; a backtick cannot end it."""
    return "`" + words.clean(text, 4096).replace("`", "'").replace("|", "\\|") + "`"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _result(report: StudyReport, base_path: str | None) -> str:
    best = use.winner(report)
    if best is None:
        return "\n\n".join(["## Result", *_nobody(report)])
    parts = [
        "## Result",
        f"The winner is **trial {best.number}**: {words.markdown(words.recipe(best.trained), 300)}.",
        _splits(report, best),
        _settings(report, best),
        _sealed(report),
        _confirmed(report),
    ]
    if report.output and best.checkpoint:
        kind = "an adapter on top of the base model" if best.checkpoint.adapter else "the full model"
        parts.append(f"Its weights ({kind}) lie in {_code(report.output)}.")
        parts.append("### How to use it")
        parts.append(words.fence(use.python_snippet(report.output, best.checkpoint.adapter), "python"))
        serve = use.serve_command(report.output, best, base_path or report.identity.model)
        parts.append(words.fence(serve, "sh"))
    return "\n\n".join(part for part in parts if part)


def _settings(report: StudyReport, best: Trial) -> str:
    """The base at each of its settings beside the winner, on both splits; empty where there is one setting."""
    lines = [f"search: {line}" for line in words.by_setting(report.base, report.others, best.scores)]
    if sealed := report.sealed:
        lines += [f"test: {line}" for line in words.by_setting(sealed.base, sealed.others, sealed.winner)]
    return "\n".join(f"- {words.markdown(line, 300)}" for line in lines)


def _confirmed(report: StudyReport) -> str:
    """The winner's recipe trained from other seeds."""
    if not report.confirmations:
        return ""
    rows = [
        (
            str(one.seed),
            words.mean(one.scores) if one.scores else "",
            words.markdown(words.relation(one.comparison) if one.comparison else "failed"),
            words.difference(one.comparison) if one.comparison else "",
        )
        for one in report.confirmations
    ]
    told = "\n".join(f"- {words.markdown(line, 300)}" for line in words.confirmed(report.confirmations))
    method = (
        "The winner's recipe, trained again from other seeds and scored on the search split. These trainings were not "
        f"chosen for their scores; each comparison stands for itself{_level(report)}."
    )
    table = _table(("Seed", "Score ± error", "Verdict", "Difference"), rows)
    return f"### Confirmation\n\n{method}\n\n{table}\n\n{told}"


def _level(report: StudyReport) -> str:
    levels = {one.comparison.alpha for one in report.confirmations if one.comparison}
    return f" (one-sided level {min(levels):g})" if levels else ""


def _nobody(report: StudyReport) -> list[str]:
    if not report.trials:
        return ["No trial is finished yet. The test split stays sealed."]
    found = "**No candidate was proven better than the base.** The test split stays sealed."
    return [found, words.markdown(words.detectable(report.trials))]


def _splits(report: StudyReport, best: Trial) -> str:
    """The winner beside the base, by benchmark, on both splits."""
    rows = [*_rows("search", best.scores, report.base)]
    if report.sealed:
        rows += _rows("**test**", report.sealed.winner, report.sealed.base)
    return _table(("Benchmark", "Split", "Winner", "Base"), rows)


def _rows(split: str, winner: Sequence[Score], base: Sequence[Score]) -> Iterator[tuple[str, ...]]:
    bases = {score.benchmark: words.score(score) for score in base}
    for score in winner:
        yield words.markdown(score.benchmark, 40), split, words.score(score), bases.get(score.benchmark, "")


def _sealed(report: StudyReport) -> str:
    if not report.sealed:
        return "The test split is still sealed; it is opened when the search ends."
    comparison = report.sealed.comparison
    opened = words.openings(report.openings, report.trials)
    text = (
        f"On the sealed test split the winner is **{words.markdown(words.relation(comparison))}**, "
        f"{words.difference(comparison)} ({opened})."
    )
    if comparison.verdict != "better":
        text += " **The gain seen in the search is not confirmed by the test split.**"
    return text + " The winner was chosen for its search score, which therefore flatters it; the test score does not."


def _picture(name: str, title: str, drawn: Sequence[str]) -> str:
    return f"![{title}]({name})" if name in drawn else ""


def _trials(report: StudyReport) -> str:
    if not report.trials:
        return ""
    header = ("#", "Hypothesis", "Change", "Score ± error", "Verdict", "Difference", "Time")
    rows = [_trial_row(trial, winner=trial.number == report.best) for trial in report.trials]
    return "## Trials\n\n" + _table(header, rows)


def _trial_row(trial: Trial, *, winner: bool) -> tuple[str, ...]:
    number = f"**{trial.number}**" if winner else str(trial.number)
    return (
        number,
        words.markdown(words.hypothesis(trial.proposal, 300), 300),
        words.markdown(words.change(trial.proposal)) + _along_the_way(trial),
        words.mean(trial.scores) if trial.scores else "",
        words.markdown(words.verdict(trial)),
        words.difference(trial.comparison) if trial.comparison else "",
        words.duration(trial.seconds),
    )


def _along_the_way(trial: Trial) -> str:
    """What was refused, made and changed before the training, a line each."""
    notes = [f"reply refused: {why}" for why in (trial.proposal.refused if trial.proposal else ())]
    if made := trial.data:
        mended = f", mended {words.count(made.repairs, 'time')}" if made.repairs else ""
        notes.append(f"{made.rows:,} rows of its own, by {f'process_data.py{mended}' if made.script else 'data steps'}")
    if trial.checkpoint and trial.checkpoint.why:
        notes.append(trial.checkpoint.why)
    return "".join(f"<br>*{words.markdown(note, 300)}*" for note in notes)


def _recipe(report: StudyReport) -> str:
    best = use.winner(report)
    if best is None or best.proposal is None:
        return ""
    import yaml

    recipe = best.trained or best.proposal.recipe
    work = {"data": list(recipe.data)} if recipe.data else {}
    text = yaml.safe_dump({**recipe.train, "seed": recipe.seed, **work}, sort_keys=True, allow_unicode=False)
    parts = ["## The winner's recipe", words.fence(text.rstrip(), "yaml")]
    if made := best.data:
        mended = f" (mended {words.count(made.repairs, 'time')})" if made.repairs else ""
        script = f"by the script `process_data.py`{mended}, which lies beside the weights"
        by = script if made.script else "by its steps"
        parts.append(f"It was trained on {made.rows:,} rows of its own, made {by}.")
    if best.checkpoint and best.checkpoint.why:
        parts.append(f"It was changed before it was trained: {words.markdown(best.checkpoint.why, 400)}.")
    return "\n\n".join(parts)


def _failures(report: StudyReport) -> str:
    failed = [(trial, trial.failure) for trial in report.trials if trial.failure]
    if not failed:
        return ""
    parts = ["## Failures"]
    for trial, failure in failed:
        parts.append(f"**Trial {trial.number}**, {words.markdown(words.failure(failure, 600), 600)}")
        tail = words.clean_block(failure.tail)
        if tail:
            parts.append(words.fence(tail, "text"))
    return "\n\n".join(parts)


def _lessons(report: StudyReport) -> str:
    lines = [f"- Trial {t.number}: {words.markdown(t.lesson, 600)}" for t in report.trials if t.lesson]
    return "## Lessons\n\n" + "\n".join(lines) if lines else ""


def _method(report: StudyReport) -> str:
    """How the verdicts were made, from the records that hold it."""
    compared = [trial.comparison for trial in report.trials if trial.comparison]
    lines = [
        "- A score is the mean over its questions ± its standard error, with the 95% Wilson interval in brackets.",
        "- *Better* means that the paired, per-question comparison with the best so far clears zero; "
        "*tie* and *worse* change nothing.",
    ]
    if compared:
        alphas = sorted({comparison.alpha for comparison in compared})
        level = f"{alphas[0]:g}" if len(alphas) == 1 else f"{alphas[0]:g} to {alphas[-1]:g}"
        lines.append(f"- One-sided level of each comparison: {level}. {words.detectable(report.trials)}")
    if saved := words.saved(report.trials):
        lines.append(f"- Racing: {saved}. Being dropped early can never make a candidate better.")
    if report.others:
        lines.append(
            "- The base is asked zero-shot and with examples, candidates zero-shot. What examples alone gain is mostly "
            "the form of an answer; only what goes beyond the better of the two counts as learned."
        )
    for score in report.base:
        made = ", ".join(f"{name} {value}" for name, value in sorted(score.settings.items()))
        lines.append(f"- {words.markdown(score.benchmark, 40)}: {words.markdown(made, 600) or 'default settings'}")
    return "## How it was measured\n\n" + "\n".join(lines)
