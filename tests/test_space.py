from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.propose.tpe import design
from agent.records import Value
from agent.space import Choice, Float, Int, Parameter, Space
from scenarios.finetune.arguments import problems
from scenarios.finetune.keys import OPEN, Bounds
from scenarios.finetune.space import default_space

UNIT = st.floats(0, 1, exclude_max=True)


@given(UNIT)
def test_every_domain_holds_what_it_draws(unit: float) -> None:
    for domain in (Float(1e-5, 1e-2, log=True), Float(0.0, 0.1), Float(-3.0, 7.0), Int(1, 9), Int(1, 512, log=True)):
        assert domain.holds(domain.at(unit))
    assert Choice(("full", "lora")).at(unit) in ("full", "lora")


def test_draws_reach_both_ends_and_are_spread_as_declared() -> None:
    steps = [i / 1000 for i in range(1000)]
    assert sum(Float(1e-5, 1e-2, log=True).at(u) < 1e-3 for u in steps) == pytest.approx(667, abs=10)
    assert sum(Float(0.0, 1.0).at(u) < 0.25 for u in steps) == pytest.approx(250, abs=10)
    assert {Int(1, 4).at(u) for u in steps} == {1, 2, 3, 4}
    assert [sum(Int(1, 4).at(u) == i for u in steps) for i in (1, 4)] == pytest.approx([250, 250], abs=10)
    assert {Int(1, 16, log=True).at(u) for u in steps} == set(range(1, 17))
    assert {Choice((8, 16, 32)).at(u) for u in steps} == {8, 16, 32}


def test_learning_rates_have_two_significant_digits_and_stay_in_range() -> None:
    rate = Float(1.04e-5, 1e-2, log=True)
    assert rate.at(0.5) == 3.2e-4
    assert rate.at(0.0) == 1.04e-5  # rounding down would leave the range
    assert Float(1e-5, 1e-2, log=True, digits=3).round(1.23456e-3) == 1.23e-3


@pytest.mark.parametrize(
    ("domain", "outside"),
    [
        (Float(0.0, 1.0), [-0.1, 1.1, True, "0.5", None]),
        (Int(1, 9), [0, 10, 1.5, True, "3"]),
        (Choice((1, 2)), [True, 1.0, 3, "1"]),
    ],
)
def test_values_of_another_kind_or_range_are_outside(domain: Float | Int | Choice, outside: list[object]) -> None:
    assert [value for value in outside if domain.holds(value)] == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float(1.0, 1.0), "low < high"),
        (lambda: Float(0.0, 1.0, log=True), "must be positive"),
        (lambda: Float(float("nan"), 1.0), "low < high"),
        (lambda: Choice(()), "distinct values"),
        (lambda: Choice((1, 1)), "distinct values"),
        (lambda: Space((Parameter("a", Int(1, 2)), Parameter("a", Int(1, 2)))), "a is twice"),
        (lambda: Space((Parameter("a", Int(1, 2)),), fixed={"a": 1}), "a is twice"),
        (lambda: Space((Parameter("r", Int(1, 2), when=("m", "lora")), Parameter("m", Choice(("lora",))))), "depends"),
        (lambda: Space((Parameter("m", Choice(("full",))), Parameter("r", Int(1, 2), when=("m", "lora")))), "depends"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_restrict_keeps_the_keys_that_vary_and_leaves_out_what_lies_outside() -> None:
    space = default_space()
    recipe: dict[str, Value] = {
        "learning_rate": 1e-3,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "per_device_train_batch_size": 16,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.0,
    }
    assert space.restrict({**recipe, "optim": "sgd"}) == recipe
    assert space.restrict({**recipe, "learning_rate": 0.5}) is None
    assert space.restrict({k: v for k, v in recipe.items() if k != "lora_rank"}) is None
    assert space.restrict({**recipe, "finetuning_type": "full"}) == {
        key: "full" if key == "finetuning_type" else value for key, value in recipe.items() if key != "lora_rank"
    }


def test_the_default_space_varies_only_keys_that_a_proposal_may_set_within_their_bounds() -> None:
    for parameter in default_space().parameters:
        rule, domain = OPEN[parameter.key], parameter.domain
        if isinstance(domain, Choice):
            assert not rule.choices or set(domain.values) <= set(rule.choices)
        else:
            assert rule.low is None or domain.low >= rule.low
            assert rule.above is None or domain.low > rule.above
            assert rule.high is None or domain.high <= rule.high
        assert not rule.methods or parameter.when in {("finetuning_type", method) for method in rule.methods}


def test_no_point_of_the_default_space_is_refused() -> None:
    bounds = Bounds(context=1024, epochs=3, layers=4, rows=2000)
    for seed in range(10):
        for point in itertools.islice(design(default_space(), seed), 16):
            assert problems(point, bounds) == []


def test_the_default_space_can_be_narrowed_to_what_fits() -> None:
    space = default_space(methods=("full",), batches=(1, 2))
    domains = {parameter.key: parameter.domain for parameter in space.parameters}
    assert domains["finetuning_type"] == Choice(("full",))
    assert domains["per_device_train_batch_size"] == Choice((1, 2))
    assert "lora_rank" not in domains
