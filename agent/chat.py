"""Which language model proposes, what it costs, and what the study may spend on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.budget import Budget
from agent.errors import UsageError
from agent.hardware import Hardware
from agent.journal import State
from agent.llm import ChatModel, Endpoint, Price, Quote, Replay, quote
from agent.money import Money, dollars
from agent.options import LoopOptions
from agent.report.words import duration
from agent.run import Say
from agent.settings import Settings

if TYPE_CHECKING:
    from agent.settings import Endpoint as Configured


ALONE = {"tpe": "TPE", "random": "random search"}
"""Proposers that ask no language model, by their setting."""
NUMBERS = "; numbers by TPE"
"""What is said of a hybrid beside its model."""


def chosen_endpoint(settings: Settings) -> Configured | None:
    """The endpoint of the language model that proposes, whose price is known; None where none does.

    Raises:
        UsageError: None is configured where one is needed, its URL is none, or its price is not known.
    """
    endpoint = settings.chat_endpoint()
    if settings.proposer in ("llm", "hybrid") and endpoint is None:
        raise UsageError(
            f"--proposer {settings.proposer} needs an endpoint, and none is configured",
            "set FT_CHAT_API_BASE or FT_CHAT_API_KEY (or OPENAI_API_KEY), or use --proposer tpe",
        )
    if settings.proposer in ALONE or endpoint is None:
        return None
    price(settings, Endpoint.of(endpoint))
    return endpoint


def require_proposer(options: LoopOptions, settings: Settings) -> None:
    """Raises UsageError for what can be known to be wrong with the proposer before anything is done."""
    if options.replay is None:
        chosen_endpoint(settings)
    elif settings.proposer in ALONE:
        raise UsageError(
            f"--llm {options.llm} replays a language model, and the proposer is {ALONE[settings.proposer]}",
            "leave one of them out",
        )
    else:
        Replay(options.replay)


def price(settings: Settings, endpoint: Endpoint) -> Quote:
    """What the agent's model costs; UsageError where that is not known."""
    return quote(endpoint, Price(input=settings.price_input, output=settings.price_output), settings.prices)


def choose_model(options: LoopOptions, settings: Settings, budget: Budget, say: Say) -> ChatModel | Replay | None:
    """The language model that proposes, or the replay of one; None where none does. Says which and why."""
    if options.replay is not None:
        replayed = Replay(options.replay, say=say)
        say(f"proposer: {replayed.calls} replies of {replayed.endpoint.model}, replayed from {options.replay}")
        return replayed
    found = chosen_endpoint(settings)
    if found is None:
        reason = ", because no endpoint is configured (FT_CHAT_API_KEY, FT_CHAT_API_BASE)"
        say(f"proposer: tpe{reason}" if settings.proposer == "auto" else f"proposer: {settings.proposer}")
        return None
    endpoint = Endpoint.of(found)
    quoted = price(settings, endpoint)
    numbers = NUMBERS if settings.proposer == "hybrid" else ""
    say(f"proposer: {endpoint.model} at {endpoint.address}, {price_in_words(quoted)}{numbers}")
    return ChatModel(
        endpoint,
        quoted.price,
        timeout=settings.llm_timeout,
        effort=settings.reasoning_effort,
        money=budget.money,
        left=budget.left,
        say=say,
    )


def price_in_words(quoted: Quote) -> str:
    """ "$0.15 + $0.6 per million tokens (prices.yaml of 2026-03-01)", "free (a private address)"."""
    given, written = quoted.price.input or 0.0, quoted.price.output or 0.0
    amount = f"{dollars(given)} + {dollars(written)} per million tokens" if given or written else "free"
    return f"{amount} ({quoted.source})"


def study_budget(
    options: LoopOptions,
    settings: Settings,
    state: State,
    machine: Hardware,
    trials: int | None,
    stages: int | None,
) -> Budget:
    """What this call may spend: its own trials, stages and time, and what is left of the study's money and GPU hours.

    Raises:
        UsageError: FT_MAX_COST is set, and what earlier calls of the study cost is not known.
    """
    spent = (state.usage + state.judging).cost
    if settings.max_cost is not None and spent is None:
        raise UsageError(
            f"{settings.origin('max_cost')}: FT_MAX_COST cannot be held: what earlier calls of this study cost is not "
            "known",
            "unset FT_MAX_COST, or begin the study anew in another workspace (FT_FILE_PATH)",
        )
    hours = settings.max_gpu_hours
    return Budget(
        trials,
        stages,
        options.timeout,
        gpus=len(machine.gpus),
        gpu_seconds=None if hours is None else 3600.0 * hours - state.gpu_seconds,
        money=Money(settings.max_cost, spent or 0.0),
    )


def limits_in_words(settings: Settings, machine: Hardware) -> list[str]:
    """What a study may spend over all its calls."""
    words = [f"{dollars(settings.max_cost)} for language models"] if settings.max_cost is not None else []
    if settings.max_gpu_hours is not None:
        words.append(f"{settings.max_gpu_hours:g} GPU hours" + ("" if machine.gpus else " (this machine has no GPU)"))
    return words


def left_in_words(budget: Budget) -> str:
    """What is left of a call's budget, for the language model."""
    seconds, money = budget.left(), budget.money.left()
    words = "no time limit" if seconds is None else f"{duration(seconds)} of this call are left"
    return words if money is None else f"{words}; {dollars(max(money, 0.0))} for your own replies"
