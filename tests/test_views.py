"""The live and the plain view, driven as the loop drives them, on recorded consoles, streams and a real pty."""

from __future__ import annotations

import io
import os
import pty
import signal
import threading
import time

import pytest
from rich.console import Console

from agent.records import Scores
from agent.report import View
from agent.report.live import LiveView, make_view
from agent.report.plain import PlainView
from tests.records_factory import make_failed, make_proposal, make_report, make_score, make_trial

HOSTILE = "\x1b[2J[bold]x[/bold] \n| y\r\x1b]0;title\x07"


class Clock:
    """Time that moves when told to."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def drive(view: View, clock: Clock) -> None:
    """The base and two trials, the second of which fails."""
    view.plan([("data set", "demo/reverse, 3,000 rows"), ("budget", "10 min")])
    view.say("the runner is local: no Docker engine answers")
    view.budget(600.0)
    view.stage_started(0, "bench", 1)
    clock.now += 12
    view.stage_ended(0, "bench", "done", 12.0)
    view.base(Scores(scores=make_report().base))
    for stage, seconds in (("propose", 0.01), ("check", 0.01), ("mini-run", 4.0), ("train", 55.0), ("bench", 20.0)):
        view.stage_started(1, stage, 1)
        clock.now += seconds
        view.progress(0.5, "step 100/200, loss 0.412")
        view.stage_ended(1, stage, "done", seconds)
    view.trial_ended(make_trial(1), 1)
    view.stage_started(2, "train", 2)
    view.budget(414.0)
    clock.now += 34
    view.progress(0.5, "step 84/200, loss 0.412")


def live(width: int = 120) -> tuple[LiveView, Clock, io.StringIO]:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=True, width=width, height=40, color_system=None, legacy_windows=False)
    return LiveView(console, clock, ticking=False), clock, out


def test_the_live_view_shows_what_runs_and_scrolls_what_is_finished() -> None:
    view, clock, out = live()
    drive(view, clock)
    frame = out.getvalue()[-600:]
    assert "trial 2   ○ propose  ○ check  ○ mini-run  ● train  ○ bench  ○ accept" in frame
    assert " 50% step 84/200, loss 0.412" in frame
    assert "train (attempt 2) 34 s  ·  6 min 20 s left  ·  best so far: trial 1, 0.873 ± 0.027" in frame
    view.trial_ended(make_failed(2), 1)
    view.close()
    text = out.getvalue()
    assert "■ base       0.013 ± 0.009 [0.004, 0.047] n=150" in text
    assert "✓ trial 1    train     55 s        step 100/200, loss 0.412" in text
    assert "▲ trial 1    0.873 ± 0.027  better than base      +0.86 [+0.80, +0.92]  1 min 21 s  learning_rate" in text
    assert "✗ trial 2    failed after 31 s: out of memory in training" in text
    assert "✓ trial 1    check" not in text  # instant stages leave no line


def test_the_live_view_gives_the_terminal_back_once() -> None:
    view, clock, out = live()
    drive(view, clock)
    view.close()
    length = len(out.getvalue())
    view.close()
    assert len(out.getvalue()) == length
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1
    view.say("still there")
    assert out.getvalue().endswith("· still there\n")


def test_the_live_view_draws_at_most_four_times_a_second() -> None:
    view, clock, out = live()
    view.stage_started(1, "train", 1)
    out.truncate(0)
    for step in range(1000):
        clock.now += 0.01
        view.progress(step / 1000, f"step {step}")
    view.close()
    assert 30 <= out.getvalue().count("trial 1") <= 46


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    view, clock, out = live(width)
    drive(view, clock)
    view.trial_ended(make_failed(2, reason="long reason " * 30), 1)
    view.close()
    lines = out.getvalue().replace("\x1b[2K", "").replace("\x1b[1A", "").replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= width + len("\x1b[?25l\x1b[?25h")
    assert "…" in out.getvalue()


def test_hostile_text_is_shown_by_both_views_and_obeyed_by_none() -> None:
    plain, (view, clock, out) = io.StringIO(), live()
    for each in (view, PlainView(plain, clock)):
        each.plan([("data set", HOSTILE)])
        each.say(HOSTILE)
        each.stage_started(1, HOSTILE, 1)
        each.progress(0.5, HOSTILE)
        each.trial_ended(make_trial(1, proposal=make_proposal(HOSTILE, HOSTILE)), 1)
        each.trial_ended(make_failed(2, reason=HOSTILE), 1)
        each.close()
    for text in (plain.getvalue(), out.getvalue()):
        assert "\x1b[2J" not in text
        assert "\x1b]" not in text
        assert "[bold]x[/bold]" in text
    assert "\x1b" not in plain.getvalue()


def test_time_alone_redraws_and_the_ticker_leaves_signals_to_the_caller() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    view = LiveView(console, time.monotonic)
    caught: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: caught.append(threading.get_ident()))
    try:
        view.stage_started(1, "propose", 1)
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while "propose 1 s" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "propose 1 s" in out.getvalue()
        (ticker,) = [thread for thread in threading.enumerate() if thread.name == "ftloop-view"]
        view.close()
        ticker.join(5)
        assert not ticker.is_alive()
    finally:
        signal.signal(signal.SIGUSR1, before)
        view.close()
    assert caught == [threading.main_thread().ident]


def test_the_live_view_costs_a_trial_little() -> None:
    view, clock, _ = live()
    started = time.perf_counter()
    for number in range(1, 21):
        for stage in ("propose", "check", "mini-run", "train", "bench", "accept"):
            view.stage_started(number, stage, 1)
            clock.now += 0.01
            view.stage_ended(number, stage, "done", 0.01)
        view.trial_ended(make_trial(number), number)
    view.close()
    assert (time.perf_counter() - started) / 20 < 0.05


def test_the_plain_view_writes_one_stamped_line_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    out, clock = io.StringIO(), Clock()
    view = PlainView(out, clock)
    drive(view, clock)
    view.trial_ended(make_failed(2), 1)
    view.close()
    view.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "2023-11-14 22:13:20  data set  demo/reverse, 3,000 rows"
    assert all(line.startswith("2023-11-14 22:1") for line in lines)
    said = [line[21:] for line in lines]
    assert "base, bench: started, 10 min 00 s left" in said
    assert "base: demo/reverse 0.013 ± 0.009 [0.004, 0.047] n=150" in said
    assert "trial 1, train: 50%, step 100/200, loss 0.412" in said
    assert "trial 1, train: done after 55 s" in said
    assert "trial 1: 0.873 ± 0.027, better than base +0.86 [+0.80, +0.92], 1 min 21 s" in said
    assert "trial 2, train: started again (attempt 2), 10 min 00 s left" in said
    assert said[-1] == "best so far: trial 1, 0.873 ± 0.027"


def test_plain_progress_is_rare_but_never_silent_for_long() -> None:
    def lines(seconds: int) -> int:
        out, clock = io.StringIO(), Clock()
        view = PlainView(out, clock)
        view.stage_started(1, "train", 1)
        for step in range(seconds * 2):
            clock.now += 0.5
            view.progress(step / (seconds * 2), f"step {step}")
        return len(out.getvalue().splitlines()) - 1

    assert lines(5) == 0
    assert 4 <= lines(50) <= 5
    assert 9 <= lines(600) <= 10
    assert 100 <= lines(36_000) <= 130


def test_a_stage_that_is_kept_or_stopped_says_so() -> None:
    out, clock = io.StringIO(), Clock()
    view = PlainView(out, clock)
    view.stage_ended(3, "train", "kept", 55.0)
    view.stage_ended(3, "bench", "stopped", 3.0)
    assert "trial 3, train: kept from an earlier call\n" in out.getvalue()
    assert "trial 3, bench: stopped after 3 s\n" in out.getvalue()


def test_a_reader_that_went_away_does_not_end_the_study() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as stream:
        drive(PlainView(stream), Clock())
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is buffered must go somewhere
    closed = io.StringIO()
    closed.close()
    drive(PlainView(closed), Clock())


def test_a_stream_without_utf8_gets_question_marks_not_an_exception() -> None:
    raw = io.BytesIO()
    view = PlainView(io.TextIOWrapper(raw, encoding="ascii"))
    view.base(Scores(scores=(make_score(0.5),)))
    assert b"0.500 ? 0.041" in raw.getvalue()


def test_the_view_is_picked_by_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert isinstance(make_view(io.StringIO()), PlainView)
    controller, terminal = pty.openpty()
    try:
        with os.fdopen(terminal, "w", encoding="utf-8") as stream:
            assert isinstance(make_view(stream), LiveView)
            monkeypatch.setenv("NO_COLOR", "1")
            assert isinstance(make_view(stream), PlainView)
            monkeypatch.delenv("NO_COLOR")
            monkeypatch.setenv("TERM", "dumb")
            assert isinstance(make_view(stream), PlainView)
    finally:
        os.close(controller)
