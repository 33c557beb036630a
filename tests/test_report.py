"""The summary, report.md and its plots: held in golden files, and against hostile text."""

from __future__ import annotations

import os
import stat
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from msgspec.structs import replace

from agent.records import SEARCHED, Confirmation, Loss, StudyReport, Usage
from agent.report import plots, use, words
from agent.report.markdown import report_text, write_report
from agent.report.summary import summary
from tests.records_factory import (
    make_checkpoint,
    make_comparison,
    make_confirmation,
    make_failed,
    make_identity,
    make_proposal,
    make_report,
    make_score,
    make_trial,
)

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07[bold red]boom[/] | a | b |\n\n# Heading\r\n![x](http://evil/p.png) <img src=x> "
    "[click](http://evil) https://evil www.evil.com `code` **loud** $x^2$ \u202egnp\u200b \x9b31m end"
)


def golden(name: str, actual: str) -> None:
    """Compare with a golden file; FTLOOP_UPDATE_GOLDEN=1 rewrites it."""
    path = GOLDEN / name
    if os.environ.get("FTLOOP_UPDATE_GOLDEN"):
        path.write_text(actual)
    assert actual == path.read_text(), f"tests/golden/{name} differs; look, then set FTLOOP_UPDATE_GOLDEN=1"


def hostile_report() -> StudyReport:
    trials = (
        make_trial(1, 0.5, "better", proposal=make_proposal(HOSTILE, HOSTILE), lesson=HOSTILE),
        make_failed(2, reason=HOSTILE, tail=f"{HOSTILE}\n```\n# out of the fence\n![x](y)"),
    )
    return make_report(trials=trials, best=1, ending=HOSTILE)


def benign_report() -> StudyReport:
    failed = make_failed(2, tail="one\ntwo")
    return make_report(trials=(make_trial(1, 0.5, "better", lesson="A lesson."), failed), best=1)


def full_report() -> StudyReport:
    """A study with a search pool, a base of two settings, a judge, and a winner that was trained again."""
    shots = replace(make_score(0.2), settings={"fewshot": 5})
    bare = replace(make_score(0.013), settings={"fewshot": 0}, unformatted=90)
    sealed = make_report().sealed
    assert sealed is not None
    failed = Confirmation(seed=45, failure=make_failed(1, reason="no memory").failure)
    return make_report(
        identity=make_identity(generation={SEARCHED: "aime24, math", "aime24": "greedy"}),
        base=(shots,),
        others=(bare,),
        sealed=replace(sealed, base=(replace(shots, split="test"),), others=(replace(bare, split="test"),)),
        confirmations=(make_confirmation(43, 0.86), make_confirmation(44, 0.21, "tie"), failed),
        judging=Usage(calls=1200, prompt_tokens=400_000, completion_tokens=1200, cost=None),
    )


def nobody_report() -> StudyReport:
    """A study that found nothing."""
    trials = (make_trial(1, 0.0, "tie", difference=-0.013), make_failed(2))
    return make_report(trials=trials, best=None, sealed=None, openings=0, output=None)


def test_the_plain_summary_is_the_golden_one() -> None:
    text = summary(make_report(), report_path="/ws/studies/demo-reverse-3f2a/report.md", base_path="/ws/models/tiny")
    golden("report-summary.txt", text)


def test_the_summary_without_a_winner_is_the_golden_one() -> None:
    golden("report-summary-nobody.txt", summary(nobody_report()))


def test_the_report_is_the_golden_one(tmp_path: Path) -> None:
    path = write_report(make_report(), tmp_path, base_path="/ws/models/tiny")
    golden("report.md", path.read_text())


def test_all_that_can_stand_beside_a_winner_is_the_golden_one() -> None:
    report = full_report()
    golden("report-summary-full.txt", summary(report))
    golden("report-full.md", report_text(report))


def test_the_summary_keeps_to_its_width_but_for_commands() -> None:
    for width in (60, 80, 100):
        text = summary(make_report(), width=width).split("use it from Python")[0]
        assert max(map(len, text.splitlines())) <= width


def test_color_changes_nothing_but_color() -> None:
    colored = summary(make_report(), color=True)
    assert "\x1b[" in colored
    assert "".join(words.ESCAPES.sub("", colored).split()) == "".join(summary(make_report()).split())


def test_commands_are_copied_whole_at_any_width() -> None:
    path = "/a directory/" + "long/" * 30 + "it's"
    text = summary(make_report(output=path), width=60)
    assert repr(path) in text
    line = next(line for line in text.splitlines() if "vllm serve" in line)
    assert "'\"'\"'s" in line


def test_nobody_won_is_said_plainly_with_what_could_have_been_found() -> None:
    for text in (" ".join(summary(nobody_report()).split()), report_text(nobody_report())):
        assert "No candidate was proven better".lower() in text.lower()
        assert "est split stays sealed" in text
        assert "0.11 or more would have been found with 80% power" in text
        assert "vllm" not in text


def test_questions_that_decide_nothing_promise_no_gain_to_be_found() -> None:
    vain = replace(make_comparison(0.4, "undecidable"), low=0.1, n=15, detectable=0.48)
    alone = replace(nobody_report(), trials=(make_trial(1, 0.5, comparison=vain),))
    mixed = replace(alone, trials=(*alone.trials, make_trial(2, 0.02, "tie")))
    for report, where in ((alone, "nothing: there"), (mixed, "nothing in 1 of 2 comparisons: there")):
        for text in (" ".join(summary(report).split()), report_text(report).replace("\\", "")):
            assert "80% power" not in text
            assert f"So few questions (15), or so few of them left to win, decide {where}" in text
            assert "FT_BENCHMARK_SAMPLES" in text


def test_no_ending_is_printed_where_there_is_none() -> None:
    report = make_report(ending="")
    assert "Ended" not in summary(report) + report_text(report)


def test_a_gain_that_the_test_split_does_not_confirm_is_said_plainly() -> None:
    sealed = make_report().sealed
    assert sealed is not None
    report = make_report(sealed=replace(sealed, comparison=make_comparison(0.02, "tie")))
    for text in (summary(report), report_text(report)):
        assert "not confirmed by the test split" in text
    assert "not confirmed" not in report_text(make_report())


def test_more_than_one_opening_is_said_plainly() -> None:
    for text in (summary(make_report(openings=3)), report_text(make_report(openings=3))):
        assert "opened for 3 winners" in " ".join(text.split())
    assert "opened once" in report_text(make_report())


def test_a_sealed_winner_says_so() -> None:
    report = make_report(sealed=None, openings=0, output=None)
    for text in (summary(report), report_text(report)):
        assert "still sealed" in text


def test_costs() -> None:
    usage = Usage(calls=12, prompt_tokens=34_000, completion_tokens=5_000, cost=0.42)
    assert words.usage(usage) == "12 calls, 34,000 + 5,000 tokens, $0.42"
    unknown = Usage(calls=1, prompt_tokens=10, completion_tokens=2, cost=None)
    assert "1 call, 10 + 2 tokens, cost unknown" in summary(make_report(usage=unknown))


def test_a_study_without_any_trial_or_score_can_be_shown(tmp_path: Path) -> None:
    report = make_report(base=(), trials=(), best=None, sealed=None, openings=0, output=None)
    assert "no trial is finished" in summary(report)
    assert "No trial is finished" in write_report(report, tmp_path).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md"]


def test_several_benchmarks_each_have_their_score() -> None:
    scores = (make_score(0.4, benchmark="gsm8k"), make_score(0.6, benchmark="aime25"))
    base = (make_score(0.1, benchmark="gsm8k"), make_score(0.2, benchmark="aime25"))
    report = make_report(trials=(make_trial(1, scores=scores),), base=base, best=1, sealed=None)
    text = summary(report)
    assert "0.500 ± 0.028" in text
    assert "gsm8k: 0.400 ± 0.040 [0.33, 0.48] n=150; base 0.100" in text
    assert "aime25: 0.600 ± 0.040 [0.52, 0.67] n=150; base 0.200" in text
    assert "| aime25 | search | 0.600" in report_text(report)


def test_many_trials_are_shortened_in_the_summary_only() -> None:
    trials = (make_trial(1), *(make_trial(n, 0.2, "worse", change=f"change {n}") for n in range(2, 101)))
    report = make_report(trials=trials, best=1)
    text = summary(report)
    assert "80 more trials" in text
    assert "*1" in text
    assert "change 100" in text
    assert "change 50" not in text
    assert "change 50" in report_text(report)


def test_a_hostile_hypothesis_cannot_reach_the_terminal() -> None:
    text = summary(hostile_report())
    assert not any(ord(character) < 32 and character != "\n" for character in text)
    assert not {"\x7f", "\x9b", "\u202e", "\u200b"} & set(text)
    assert "[bold red]boom[/]" in text  # shown, not obeyed
    assert summary(hostile_report(), color=True).count("\x1b]") == 0
    assert "owned" not in text


def shape(markdown: str) -> Counter[str]:
    """How many elements of each kind a Markdown document has; plain text and line ends are left out."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    flat = [child for token in tokens for child in (token, *(token.children or ()))]
    ignored = {"inline", "text", "text_special", "softbreak"}
    return Counter(token.type for token in flat if token.type not in ignored)


def test_a_hostile_hypothesis_cannot_change_the_reports_structure() -> None:
    drawn = ("report-scores.svg", "report-loss.svg")
    hostile, benign = report_text(hostile_report(), drawn), report_text(benign_report(), drawn)
    assert shape(hostile) == shape(benign)
    assert shape(hostile)["image"] == 2
    assert shape(hostile)["link_open"] == 0
    assert not {"\x1b", "\x9b", "\r", "\u202e"} & set(hostile)


def test_a_hostile_hypothesis_cannot_move_the_tables_columns() -> None:
    section = report_text(hostile_report()).split("## Trials")[1].split("\n## ")[0]
    tokens = MarkdownIt("commonmark").enable("table").parse(section)
    cells = [cell.content for before, cell in pairwise(tokens) if before.type == "td_open"]
    first, second = cells[:7], cells[7:]
    assert first[0] == "**1**"
    assert first[3:] == ["0.500 ± 0.041", "better than base", "+0.49 [+0.43, +0.55]", "1 min 21 s"]
    assert second[0] == "2"
    assert second[3:] == ["", "failed: out of memory in training", "", "31 s"]


@pytest.mark.parametrize(
    "text", ["- item", "+ item", "1. item", "1) item", "=== x", "# x", "> x", "~~~", "---", "\t x"]
)
def test_no_text_starts_a_block(text: str) -> None:
    assert set(shape(words.markdown(text))) == {"paragraph_open", "paragraph_close"}


@pytest.mark.parametrize("text", ["learning_rate 1e-3", "a_b _c_ d_", "1 < 2 & \\| `x` *y*", "100 % of $5 @me #1 !"])
def test_markdown_shows_exactly_the_text(text: str) -> None:
    (inline,) = [t for t in MarkdownIt("commonmark").parse(words.markdown(text)) if t.type == "inline"]
    assert inline.children is not None
    assert "".join(child.content for child in inline.children) == text


def test_a_log_tail_keeps_what_its_progress_bar_ended_with() -> None:
    tail = "start\n 0%|\r 50%|\r100%|##|\r\n\x1b[31mError\x1b[0m: no\n\n"
    assert words.clean_block(tail) == "start\n100%|##|\nError: no"
    assert words.clean_block("\n".join(map(str, range(50))), lines=2) == "48\n49"
    assert words.clean_block("x" * 300, width=10) == "x" * 9 + "…"


def test_cleaned_text_is_bounded_and_fast() -> None:
    assert words.clean("x" * 10_000_000, 20) == "x" * 19 + "…"
    assert words.clean("\x1b]" * 100_000 + "x") == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (0.96, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (86400 + 3 * 3600, "1 d 3 h"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert words.duration(seconds) == expected


def test_scores_and_differences() -> None:
    assert words.score(make_score(1.0)) == "1.000 ± 0.000 [0.975, 1.000] n=150"
    assert words.difference(make_comparison(-0.001, "tie")) == "+0.00 [-0.06, +0.06]"


def test_an_adapter_of_high_rank_is_served_with_that_rank() -> None:
    high = make_trial(1, proposal=make_proposal(train={"lora_rank": 64}))
    assert "--max-lora-rank 64" in use.serve_command("/w", high, "base")
    full = make_trial(1, checkpoint=make_checkpoint(adapter=False))
    assert use.serve_command("/w", full, "base") == "vllm serve /w"
    compile(use.python_snippet("/it's \\ here", adapter=True), "snippet", "exec")
    compile(use.python_snippet("/w", adapter=False), "snippet", "exec")


def test_the_plots_are_deterministic_svg_without_dates() -> None:
    for draw in (plots.scores_svg, plots.losses_svg):
        first, second = draw(make_report()), draw(make_report())
        assert first is not None
        assert first == second
        assert ET.fromstring(first).tag.endswith("svg")
        assert b"<dc:date" not in first


def test_plots_of_odd_records() -> None:
    failed = make_report(trials=(make_failed(1),), best=None, sealed=None)
    assert plots.scores_svg(failed) is not None
    assert plots.losses_svg(failed) is None
    nan = float("nan")
    wild = tuple(Loss(step, nan if step % 3 else -0.1) for step in range(3000))
    trial = make_trial(1, checkpoint=replace(make_checkpoint(), losses=wild))
    report = make_report(trials=(trial,), best=1)
    svg = plots.losses_svg(report)
    assert svg is not None
    assert len(svg) < 200_000
    assert b"nan" not in svg


def test_writing_leaves_whole_readable_files_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("old")
    path = write_report(make_report(), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.md"
    assert sorted(p.name for p in path.parent.iterdir()) == ["report-loss.svg", "report-scores.svg", "report.md"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    before = path.read_bytes()
    assert write_report(make_report(), path.parent).read_bytes() == before
