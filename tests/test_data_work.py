"""Which models data scripts may ask, and that a price that nobody knows stops the call before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.data_work import data_models, require_prices
from agent.errors import UsageError
from agent.llm import Price
from agent.options import parse
from agent.run import Runner
from agent.run.local import LocalRunner
from agent.settings import Settings, load
from tests.conformance.runners import ThisPython

PAID = {"FT_CHAT_API_BASE": "https://api.openai.com/v1", "FT_CHAT_API_KEY": "sk-0123456789"}
LOCAL = {"FT_CHAT_API_BASE": "http://127.0.0.1:8000", "FT_CHAT_MODEL": "qwen"}


def settings(tmp_path: Path, **given: str) -> Settings:
    return load({}, None, given, tmp_path)


def named(found: Settings) -> dict[str, list[tuple[str, Price]]]:
    return {
        role: [(endpoint.model, price) for endpoint, price in several] for role, several in data_models(found).items()
    }


def test_both_roles_are_the_agents_model_unless_said_otherwise(tmp_path: Path) -> None:
    free = Price(input=0.0, output=0.0)
    assert named(settings(tmp_path, **LOCAL)) == {"strong": [("qwen", free)], "weak": [("qwen", free)]}
    found = settings(tmp_path, **LOCAL, FT_STRONG_MODELS="large, spare,large", FT_WEAK_MODELS="small")
    assert named(found) == {"strong": [("large", free), ("spare", free)], "weak": [("small", free)]}
    assert data_models(settings(tmp_path)) == {}


@pytest.mark.parametrize("value", ["a,,b", ",", "a, "])
def test_an_empty_name_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"environment: FT_STRONG_MODELS: .*write names with commas between them"):
        settings(tmp_path, **LOCAL, FT_STRONG_MODELS=value)


def test_the_agents_price_is_no_other_models_price(tmp_path: Path) -> None:
    priced = {**PAID, "FT_CHAT_MODEL": "mine", "FT_PRICE_INPUT": "1", "FT_PRICE_OUTPUT": "2"}
    assert named(settings(tmp_path, **priced))["weak"] == [("mine", Price(input=1.0, output=2.0))]
    with pytest.raises(UsageError) as caught:
        data_models(settings(tmp_path, **priced, FT_STRONG_MODELS="mine,unheard-of"))
    assert str(caught.value).startswith("FT_STRONG_MODELS: the price of unheard-of at https://api.openai.com/v1")
    assert "FT_PRICES" in caught.value.hint
    assert "FT_PRICE_INPUT" not in caught.value.hint
    table = tmp_path / "prices.yaml"
    table.write_text("api.openai.com:\n  models:\n    unheard-of: {input: 3, output: 4}\n")
    found = settings(tmp_path, **priced, FT_STRONG_MODELS="unheard-of", FT_PRICES=str(table))
    assert named(found)["strong"] == [("unheard-of", Price(input=3.0, output=4.0))]


@pytest.mark.parametrize(
    ("proposer", "unsafe", "refused"), [("llm", True, True), ("llm", False, False), ("tpe", True, False)]
)
def test_it_stops_the_call_only_where_a_script_could_ask(
    proposer: str, unsafe: bool, refused: bool, tmp_path: Path
) -> None:
    given = {**PAID, "FT_CHAT_MODEL": "gpt-4o-mini", "FT_STRONG_MODELS": "unheard-of", "FT_PROPOSER": proposer}
    runner: Runner = LocalRunner(ThisPython(), unsafe=unsafe)
    options, found = parse(["--dataset", "demo/reverse"]), settings(tmp_path, **given)
    if refused:
        with pytest.raises(UsageError, match="FT_STRONG_MODELS: the price of unheard-of"):
            require_prices(options, found, runner)
    else:
        require_prices(options, found, runner)
