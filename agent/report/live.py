"""The view for a terminal: what is finished scrolls up as single lines, what runs stays in four calm lines below.

▲ trial 1  0.873 ± 0.027  better than base  +0.86 [+0.79, +0.91]  1 min 20 s  learning_rate 0.002

trial 2   ✓ propose  ✓ check  ✓ mini-run  ● train  ○ bench  ○ accept
━━━━━━━━━━━━━━━━━━━━╺━━━━━━━━━━━━━━━━━━━   50%  step 100/200, loss 0.412
train 34 s  ·  6 min 20 s left  ·  best so far: trial 1, 0.873 ± 0.027
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agent.records import STAGES, Scores, Trial
from agent.report import View, words
from agent.report.plain import PlainView

PERIOD = 0.25  # seconds between two redraws
NOTABLE = 1.0  # seconds; shorter stages leave no line behind
BAR = 40  # columns
MARKS = {"done": ("✓", "green"), "kept": ("✓", "dim"), "failed": ("✗", "red"), "stopped": ("■", "yellow")}


def make_view(stream: TextIO) -> View:
    """A live view where `stream` is a terminal that can show it; else a plain one (NO_COLOR, TERM=dumb, no UTF-8)."""
    dumb = os.environ.get("TERM", "") in {"", "dumb", "unknown"} or bool(os.environ.get("NO_COLOR"))
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    if not stream.isatty() or dumb or encoding != "utf8":
        return PlainView(stream)
    return LiveView(Console(file=stream, force_terminal=True, highlight=False, markup=False, emoji=False))


@dataclass(frozen=True)
class _Now:
    """The running stage; replaced as a whole, so that the ticker never sees half of a change."""

    trial: int
    stage: str
    attempt: int
    started: float
    fraction: float | None = None
    words: str = ""
    ended: tuple[tuple[str, str], ...] = ()  # earlier stages of this trial, with their outcomes


class LiveView:
    """Draws on `console` about four times a second, from a thread that blocks all signals (they stay with the caller).

    Args:
        console: A rich console on a terminal.
        clock: Monotonic seconds.
        ticking: Whether time alone redraws; without it only events do.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic, *, ticking: bool = True) -> None:
        self._console = console
        self._clock = clock
        self._ticking = ticking
        self._live: Live | None = None
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._drawn = -PERIOD
        self._now: _Now | None = None
        self._deadline: float | None = None
        self._best: int | None = None
        self._means: dict[int, str] = {}

    def say(self, message: str) -> None:
        """One line that should be seen once."""
        self._print(Text("· " + words.clean_block(message, lines=20, width=500).replace("\n", "\n  "), style="dim"))

    def plan(self, rows: list[tuple[str, str]]) -> None:
        """The header of a call."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in rows:
            grid.add_row(Text(words.clean(name, 40)), Text(words.clean(value, 500)))
        self._print(Group(Text(""), grid, Text("")))

    def budget(self, seconds_left: float | None) -> None:
        """Remaining active time, counted down between calls."""
        self._deadline = None if seconds_left is None else self._clock() + seconds_left
        self._redraw()

    def stage_started(self, trial: int, stage: str, attempt: int) -> None:
        """A stage begins."""
        ended = self._now.ended if self._now and self._now.trial == trial else ()
        name = words.clean(stage, 40)
        self._now = _Now(trial, name, attempt, self._clock(), ended=tuple(e for e in ended if e[0] != name))
        self._start()
        self._redraw()

    def progress(self, fraction: float, message: str) -> None:
        """How far the running stage is."""
        if self._now:
            self._now = replace(self._now, fraction=min(1.0, max(0.0, fraction)), words=words.clean(message, 120))
            self._redraw()

    def stage_ended(self, trial: int, stage: str, outcome: str, seconds: float) -> None:
        """A stage is over; it leaves a line unless it was short and uneventful."""
        name, now = words.clean(stage, 40), self._now
        last_words = ""
        if now and now.trial == trial:
            last_words = now.words
            self._now = replace(now, ended=(*now.ended, (name, outcome)), fraction=None, words="")
        else:
            self._now = _Now(trial, name, 1, self._clock(), ended=((name, outcome),))
        if seconds >= NOTABLE or outcome != "done":
            self._print(_stage_line(trial, name, outcome, seconds, last_words))

    def base(self, scores: Scores) -> None:
        """The score to beat."""
        self._means[0] = words.mean(scores.scores)
        for score in scores.scores:
            self._print(
                Text.assemble(
                    ("■ base     ", "bold"), f"  {words.score(score)}  ", (words.clean(score.benchmark), "dim")
                )
            )

    def trial_ended(self, trial: Trial, best: int | None) -> None:
        """A trial was recorded."""
        self._best = best
        self._means[trial.number] = words.mean(trial.scores)
        self._now = None
        self._print(_trial_line(trial, self._console.width))

    def close(self) -> None:
        """Give the terminal back; may be called twice."""
        self._closed.set()
        with self._lock:
            live, self._live = self._live, None
            if live is not None:
                _unless_gone(live.stop)

    def _start(self) -> None:
        if self._live is not None or self._closed.is_set():
            return
        self._live = Live(console=self._console, get_renderable=self._render, auto_refresh=False, transient=True)
        _unless_gone(self._live.start)
        if self._ticking:
            threading.Thread(target=self._tick, name="ftloop-view", daemon=True).start()

    def _tick(self) -> None:
        # The kernel may hand a signal to any thread that does not block it; a sleeping caller would not wake up then.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._closed.wait(PERIOD):
            self._redraw()

    def _redraw(self) -> None:
        """Draw what runs, unless that was done a moment ago."""
        with self._lock:
            if self._live is not None and self._clock() - self._drawn >= PERIOD * 0.9:
                self._drawn = self._clock()
                _unless_gone(self._live.refresh)

    def _print(self, what: RenderableType) -> None:
        """Print above what runs."""
        with self._lock:
            # Printing joins texts into a new one, which forgets their own wrapping; so it is given here.
            single = isinstance(what, Text) and bool(what.no_wrap)
            options: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"} if single else {}
            _unless_gone(lambda: self._console.print(what, **options))

    def _render(self) -> RenderableType:
        now = self._now
        head = Text.assemble((f"{words.subject(now.trial):<10}", "bold"), *_track(now)) if now else Text("")
        lines = [Text(""), head, _bar(now), self._status(now)]
        for line in lines:
            if isinstance(line, Text):
                line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines)

    def _status(self, now: _Now | None) -> Text:
        parts = []
        if now:
            again = f" (attempt {now.attempt})" if now.attempt > 1 else ""
            parts.append(f"{now.stage}{again} {words.clock(self._clock() - now.started)}")
        if self._deadline is not None:
            parts.append(f"{words.clock(max(0.0, self._deadline - self._clock()))} left")
        if self._means:
            parts.append(f"best so far: {words.best(self._best, self._means)}")
        return Text("  ·  ".join(parts), style="dim")


def _track(now: _Now) -> list[tuple[str, str]]:
    """The trial's stages: ended, running, to come; data work is none of them until there is some."""
    outcomes = dict(now.ended)
    listed = now.trial and now.stage in STAGES
    known = [stage for stage in STAGES if listed and (stage != "data" or stage in (*outcomes, now.stage))]
    names = [*known, *(name for name in (*outcomes, now.stage) if name not in known)]
    parts = []
    for name in dict.fromkeys(names):
        if name in outcomes:
            mark, style = MARKS.get(outcomes[name], ("✓", "green"))
            parts.append((f"{mark} {name}  ", style))
        elif name == now.stage:
            parts.append((f"● {name}  ", "bold cyan"))
        else:
            parts.append((f"○ {name}  ", "dim"))
    return parts


def _bar(now: _Now | None) -> RenderableType:
    """The stage's progress; an empty bar while it is not known, so that nothing jumps."""
    known = now is not None and now.fraction is not None
    fraction = now.fraction if now is not None and now.fraction is not None else 0.0
    row = Table.grid(padding=(0, 1))
    row.add_column(width=BAR)
    row.add_column(width=4, justify="right")
    row.add_column(no_wrap=True, overflow="ellipsis")
    bar = ProgressBar(total=1.0, completed=fraction, width=BAR, style="bright_black", complete_style="cyan")
    row.add_row(bar, Text(f"{fraction:.0%}" if known else ""), Text(now.words if now else "", style="dim"))
    return row


def _stage_line(trial: int, stage: str, outcome: str, seconds: float, last_words: str) -> Text:
    mark, style = MARKS.get(outcome, ("!", "yellow"))
    said = "kept from an earlier call" if outcome == "kept" else words.duration(seconds)
    if outcome not in {"done", "kept"}:
        said = f"{words.clean(outcome, 40)} after {said}"
    detail = f"{stage:<10}{said:<11}" + _kept_words(outcome, last_words)
    line = Text.assemble((f"  {mark} ", style), (f"{words.subject(trial):<9}  {detail}", "dim"))
    line.no_wrap = True
    return line


def _kept_words(outcome: str, last_words: str) -> str:
    """What a stage said last, where it stays true afterwards: a loss does, "1/150 questions" does not."""
    return f" {last_words}".rstrip() if outcome != "done" or "loss" in last_words else ""


def _trial_line(trial: Trial, width: int) -> Text:
    """One line; narrow terminals lose the interval, and then the end of the change."""
    outcome = words.outcome(trial)
    head = (f"{words.SYMBOLS[outcome]} {words.subject(trial.number):<9}", words.STYLES.get(outcome, "") or "bold")
    line = Text(no_wrap=True)
    line.append_text(Text.assemble(head, "  "))
    if trial.comparison:
        gap = words.difference(trial.comparison) if width >= 100 else words.difference(trial.comparison).split()[0]
        line.append(f"{words.mean(trial.scores)}  ")
        line.append(f"{words.verdict(trial):<20}  ", style=words.STYLES.get(outcome, ""))
        line.append(f"{gap}  {words.duration(trial.seconds)}  ")
        line.append(words.change(trial.proposal), style="dim")
    elif trial.failure:
        line.append("failed", style="red")
        line.append(f" after {words.duration(trial.seconds)}: {words.failure(trial.failure)}  ")
        line.append(words.change(trial.proposal), style="dim")
    return line


def _unless_gone(draw: Callable[[], object]) -> None:
    """A terminal that was closed is not worth the study."""
    try:
        draw()
    except (OSError, ValueError):
        return
