"""The report's two pictures as SVG: scores over trials, and the loss curves of the best few.

The same report gives the same bytes. Only numbers are drawn, so no text of a proposal can reach matplotlib's parser.
Colours: Okabe and Ito, distinguishable with every common colour vision.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agent.records import Loss, Score, StudyReport, Trial, estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, RED, GREY, INK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#D55E00",
    "#8A8F98",
    "#2B2F36",
)
CURVES = (BLUE, ORANGE, GREEN, PURPLE)
POINTS = 600  # of one loss curve; more cannot be seen
STYLE: dict[str, Any] = {
    "svg.hashsalt": "ftloop",  # matplotlib salts its SVG ids with a random uuid otherwise
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.titlepad": 12,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": "#E8EAED",
    "grid.linewidth": 0.8,
    "text.parse_math": False,
}


def scores_svg(report: StudyReport) -> bytes | None:
    """Score over trials on the search split, with 95% intervals; None before anything was scored."""
    if not report.base and not any(trial.scores for trial in report.trials):
        return None
    return _svg(lambda axes: _draw_scores(axes, report))


def losses_svg(report: StudyReport) -> bytes | None:
    """Training loss of the best few trials; None where no trial logged one."""
    curves = [(trial, _finite(trial.checkpoint.losses)) for trial in report.trials if trial.checkpoint]
    ranked = sorted((c for c in curves if len(c[1]) > 1), key=lambda c: (-(_middle(c[0], report) or 0.0), c[0].number))
    if not ranked:
        return None
    return _svg(lambda axes: _draw_losses(axes, ranked[: len(CURVES)], report))


def _svg(draw: Any) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure: Figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _draw_scores(axes: Axes, report: StudyReport) -> None:
    from matplotlib.ticker import MaxNLocator

    scored = [trial for trial in report.trials if trial.scores]
    last = max((trial.number for trial in report.trials), default=0)
    crowded = last > 60
    for won, colour, face, label in ((True, BLUE, BLUE, "better"), (False, GREY, "white", "tie or worse")):
        group = [t for t in scored if (t.comparison is not None and t.comparison.verdict == "better") == won]
        if group:
            middles = [of_trial(trial, report) for trial in group]
            axes.errorbar(
                [trial.number for trial in group],
                [middle for middle, _, _ in middles],
                yerr=[[m - low for m, low, _ in middles], [high - m for m, _, high in middles]],
                fmt="o",
                markersize=3.5 if crowded else 6,
                markerfacecolor=face,
                markeredgecolor=colour,
                markeredgewidth=1.3,
                ecolor=colour,
                elinewidth=0.6 if crowded else 1.1,
                label=label,
                zorder=4 if won else 3,
            )
    _draw_best(axes, report, last)
    tops = [_interval(report.base)[2]] if report.base else []
    highest = max([*tops, *(of_trial(trial, report)[2] for trial in scored)])
    top = 1.0 if highest > 0.6 else highest * 1.15
    failed = [trial.number for trial in report.trials if trial.failure]
    if failed:  # in a lane of their own below zero: they have no score
        axes.plot(failed, [-0.09 * top] * len(failed), "x", color=RED, markersize=4 if crowded else 6, label="failed")
    axes.set(xlim=(-0.6, last + 0.6), ylim=(-0.15 * top if failed else -0.04 * top, 1.04 * top))
    axes.set(xlabel="trial (0 is the base)", ylabel="score")
    axes.set_title("Score on the search split, with 95% intervals")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_yticks([tick for tick in MaxNLocator(6).tick_values(0.0, top) if 0.0 <= tick <= 1.0])
    axes.grid(axis="y")
    _legend(axes, ("better", "best so far", "tie or worse", "base", "failed"))


def _draw_best(axes: Axes, report: StudyReport, last: int) -> None:
    """The base as a dashed line; the best so far as steps."""
    if not report.base:
        return
    base, low, high = _interval(report.base)
    axes.errorbar([0], [base], yerr=[[base - low], [high - base]], fmt="s", color=INK, markersize=5, elinewidth=1.1)
    axes.axhline(base, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="base", zorder=1)
    numbers, bests = [0], [base]
    for trial in report.trials:
        if trial.comparison and trial.comparison.verdict == "better" and trial.mean is not None:
            numbers.append(trial.number)
            bests.append(trial.mean)
    if len(bests) > 1:
        axes.step(
            [*numbers, last + 0.4],
            [*bests, bests[-1]],
            where="post",
            color=BLUE,
            linewidth=1.6,
            alpha=0.55,
            label="best so far",
            zorder=2,
        )


def _middle(trial: Trial, report: StudyReport) -> float | None:
    return estimate(trial, report.base, report.trials)


def of_trial(trial: Trial, report: StudyReport) -> tuple[float, float, float]:
    """Mean and interval of a trial; of one that was dropped early its estimate, as uncertain as its difference is."""
    found, middle = trial.comparison, _middle(trial, report)
    if found is None or found.asked is None or middle is None:
        return _interval(trial.scores)
    low, high = middle - (found.difference - found.low), middle + (found.high - found.difference)
    return middle, min(middle, max(0.0, low)), max(middle, min(1.0, high))


def _interval(scores: Sequence[Score]) -> tuple[float, float, float]:
    """Mean and 95% interval; over several benchmarks by the normal approximation, inside [0, 1]."""
    if len(scores) == 1:
        return scores[0].mean, scores[0].low, scores[0].high
    middle = sum(s.mean for s in scores) / len(scores)
    error = 1.96 * math.sqrt(sum(s.stderr**2 for s in scores)) / len(scores)
    return middle, max(0.0, middle - error), min(1.0, middle + error)


def _draw_losses(axes: Axes, curves: Sequence[tuple[Trial, list[Loss]]], report: StudyReport) -> None:
    from matplotlib.ticker import LogLocator

    for (trial, losses), colour in zip(curves, CURVES, strict=False):
        winner, middle = trial.number == report.best, _middle(trial, report)
        score = "" if middle is None else f", score {middle:.3f}"
        axes.plot(
            [point.step for point in losses],
            [point.loss for point in losses],
            color=colour,
            linewidth=2.2 if winner else 1.3,
            label=f"trial {trial.number}{score}{' (winner)' if winner else ''}",
            zorder=3 if winner else 2,
            solid_capstyle="round",
        )
    values = [point.loss for _, losses in curves for point in losses]
    if min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(values) < 1e4 * min(values) else (1.0,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    else:
        axes.set_ylim(bottom=min(0.0, min(values)))
    axes.set(xlabel="step", ylabel="loss")
    axes.set_title("Training loss of the best trials")
    axes.margins(x=0.02)
    axes.grid(axis="y")
    _legend(axes)


def _finite(losses: Sequence[Loss]) -> list[Loss]:
    """The points that can be drawn, thinned to `POINTS`; a diverged training logs nan."""
    finite = [point for point in losses if math.isfinite(point.loss)]
    stride = max(1, math.ceil(len(finite) / POINTS))
    return finite[::stride]


def _legend(axes: Axes, order: Sequence[str] = ()) -> None:
    """To the right of the plot, where it can hide no point; in the order given, else in that of drawing."""
    handles, labels = axes.get_legend_handles_labels()
    drawn = dict(zip(labels, handles, strict=True))
    chosen = [label for label in order or labels if label in drawn]
    axes.legend(
        [drawn[label] for label in chosen],
        chosen,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        borderaxespad=0.0,
        labelcolor=INK,
    )
