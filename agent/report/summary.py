"""What is printed when a call ends: the trials, the winner, its sealed test score, and what to do with it.

Text from proposals goes into `rich.text.Text` after cleaning, never into markup; commands are never wrapped, so that
they can be copied.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.records import Score, StudyReport, Trial
from agent.report import use, words

ROWS = 20  # trials shown; all of them are in report.md
TRIED = 84  # characters of a change and of a hypothesis: about two lines each


def summary(
    report: StudyReport,
    *,
    width: int = 100,
    color: bool = False,
    report_path: str | None = None,
    base_path: str | None = None,
) -> str:
    """The study so far as text, `width` columns wide; with ANSI colours where `color` is true.

    `base_path` is where the base model's weights lie, for the command that serves an adapter on top of them.
    """
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    _head(console, report)
    if report.base or report.trials:
        console.print(_table(report))
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="dim" if color else "", min_width=10)
    facts.add_column(overflow="fold")
    for name, lines in _facts(report, report_path):
        facts.add_row(name, Text("\n").join(lines))
    console.print(Padding(facts, (0, 0, 0, 1)))
    _use(console, report, base_path)
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))


def _head(console: Console, report: StudyReport) -> None:
    identity = report.identity
    benchmarks = ", ".join(identity.benchmarks)
    searched = f", searched with {words.clean(identity.pool)}" if identity.pool else ""
    console.print()
    console.print(Text(f" Study {words.clean(report.study)}", style="bold"))
    console.print(
        Text(
            f" {words.clean(identity.model)} tuned on {words.clean(identity.dataset)}, "
            f"measured by {words.clean(benchmarks)}{searched}"
        )
    )
    tally = words.tally(report.trials)
    done = f"{words.count(len(report.trials), 'trial')} in {words.duration(report.active_seconds)}"
    ending = words.clean(report.ending).rstrip(".")
    console.print(Text(f" {done}{': ' + tally if tally else ''}.{f' Ended: {ending}.' if ending else ''}"))


def _table(report: StudyReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=True, header_style="dim")
    table.add_column("", width=3, justify="right", no_wrap=True)
    table.add_column("change and hypothesis", ratio=1, overflow="fold")
    table.add_column("score", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("time", no_wrap=True, justify="right")
    if report.base:
        seconds = sum(score.seconds for score in report.base)
        name = f"the base model, {words.setting(report.base[0])}" if report.others else "the base model"
        table.add_row("", name, words.mean(report.base), "the one to beat", words.duration(seconds))
    for other in report.others:
        benchmark = f"{words.clean(other.benchmark, 40)}, " if len(report.base) > 1 else ""
        name = f"the base model, {benchmark}{words.setting(other)}"
        table.add_row("", Text(name), words.mean([other]), "", words.duration(other.seconds))
    shown = _shown(report)
    hidden = len(report.trials) - len(shown)
    if hidden:
        table.add_row("", Text(f"{words.count(hidden, 'more trial')}, all in the report", style="dim"))
    for trial in shown:
        _trial_row(table, trial, winner=trial.number == report.best)
    return table


def _shown(report: StudyReport) -> Sequence[Trial]:
    """The last trials, and the best one."""
    if len(report.trials) <= ROWS:
        return report.trials
    last = report.trials[-(ROWS - 1) :]
    best = use.winner(report)
    return last if best is None or best in last else (best, *last)


def _trial_row(table: Table, trial: Trial, *, winner: bool) -> None:
    style = words.STYLES.get(words.outcome(trial), "")
    reason = ""
    if trial.comparison:
        decision = Text(words.relation(trial.comparison), style=style)
        detail = words.difference(trial.comparison)
        reason = words.dropped(trial.comparison)
    else:
        decision = Text("failed", style=style)
        detail = words.FAILURES[trial.failure.kind] if trial.failure else ""
        reason = words.clean(trial.failure.reason, TRIED) if trial.failure else ""
    tried = Text(words.change(trial.proposal, TRIED) or "(no proposal)", style="bold" if winner else "")
    why = reason or words.hypothesis(trial.proposal, TRIED)
    table.add_row(
        Text(f"{'*' if winner else ''}{trial.number}", style="bold" if winner else ""),
        Text("\n").join([tried, Text(why, style="dim")]),
        words.mean(trial.scores) if trial.scores else "",
        Text("\n").join([decision, Text(detail, style="dim")]),
        words.duration(trial.seconds),
    )


def _facts(report: StudyReport, report_path: str | None) -> list[tuple[str, list[Text]]]:
    best = use.winner(report)
    facts = _won(report, best) if best else [("winner", _nobody(report))]
    if report.contamination is not None and report.contamination.flagged:
        removed = report.contamination.action == "removed"
        found = Text(words.contamination(report.contamination), style="" if removed else "bold yellow")
        facts.append(("data set", [found]))
    if saved := words.saved(report.trials):
        facts.append(("racing", [Text(saved)]))
    if report_path:
        facts.append(("report", [Text(report_path)]))
    facts.append(("proposer", [Text(words.usage(report.usage))]))
    if report.judging.calls:
        facts.append(("judge", [Text(words.usage(report.judging))]))
    facts.append(("go on", [Text(_go_on(report))]))
    return facts


def _go_on(report: StudyReport) -> str:
    if "at the ceiling" in report.ending:
        return "nothing more can be proven here; --loop_n N tries N more recipes all the same"
    if "too short" in report.ending:
        return "the same command with more --timeout"
    if report.ending.startswith("running"):
        return "Ctrl-C in its terminal stops it cleanly"
    return "give the same command again: it continues this study and repeats nothing"


def _won(report: StudyReport, best: Trial) -> list[tuple[str, list[Text]]]:
    facts = [
        ("winner", [Text(f"trial {best.number}: {words.recipe(best.trained)}", style="bold green")]),
        ("search", _pairs(best.scores, report.base)),
    ]
    if told := words.by_setting(report.base, report.others, best.scores):
        facts.append(("by setting", [Text(line) for line in told]))
    if report.sealed:
        comparison = report.sealed.comparison
        decided = f"{words.relation(comparison)}: {words.difference(comparison)}"
        lines = [*_pairs(report.sealed.winner, report.sealed.base), Text(decided, style=_style(comparison.verdict))]
        if comparison.verdict != "better":
            lines.append(Text("The gain seen in the search is not confirmed by the test split.", style="bold yellow"))
        told = words.by_setting(report.sealed.base, report.sealed.others, report.sealed.winner)
        lines += [Text(line) for line in told]
        lines.append(Text(words.openings(report.openings, report.trials)))
        facts.append(("test", lines))
    else:
        facts.append(("test", [Text("still sealed; it is opened when the search ends")]))
    if found := words.confirmed(report.confirmations):
        facts.append(("confirmed", [Text(line) for line in found]))
    if report.output and best.checkpoint:
        kind = "an adapter on top of the base model" if best.checkpoint.adapter else "the full model"
        facts.append(("weights", [Text(f"{words.clean(report.output, 4096)} ({kind})")]))
    return facts


def _style(verdict: str) -> str:
    return words.STYLES.get(verdict, "bold yellow")


def _pairs(winner: Sequence[Score], base: Sequence[Score]) -> list[Text]:
    """The winner's score beside the base's, one line a benchmark."""
    bases = {score.benchmark: score for score in base}
    several = len(winner) > 1
    lines = []
    for score in winner:
        name = f"{words.clean(score.benchmark, 40)}: " if several else ""
        other = bases.get(score.benchmark)
        against = f"; base {words.score(other)}" if other else ""
        lines.append(Text(f"{name}{words.score(score)}{against}"))
    return lines


def _nobody(report: StudyReport) -> list[Text]:
    if not report.trials:
        return [Text("none yet: no trial is finished. The test split stays sealed.")]
    base = f" ({words.mean(report.base)})" if report.base else ""
    return [
        Text(f"none: no candidate was proven better than the base{base}.", style="bold yellow"),
        Text("The test split stays sealed."),
        Text(words.detectable(report.trials)),
    ]


def _use(console: Console, report: StudyReport, base_path: str | None) -> None:
    best = use.winner(report)
    if best is None or best.checkpoint is None or not report.output:
        return
    snippet = use.python_snippet(report.output, best.checkpoint.adapter)
    serve = use.serve_command(report.output, best, base_path or report.identity.model)
    for title, command in (
        ("use it from Python, where transformers and peft are installed:", snippet),
        ("or serve it:", serve),
    ):
        console.print()
        console.print(Text(f" {title}", style="dim"))
        for line in command.split("\n"):
            console.print(Text(f"   {line}"), soft_wrap=True)
    console.print()
