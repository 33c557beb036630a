from fnmatch import fnmatchcase

import msgspec
import pytest

from scenarios.finetune.arguments import schema
from scenarios.finetune.keys import CLOSED, OPEN, Bounds, offered, why_closed
from scenarios.finetune.packages import installed


def test_every_open_key_is_an_argument_of_the_pinned_llama_factory() -> None:
    assert OPEN.keys() <= schema().keys()


@pytest.mark.parametrize("pattern", [pattern for group in CLOSED for pattern in group.patterns.split()])
def test_a_closed_pattern_matches_arguments_and_no_open_key(pattern: str) -> None:
    matched = [name for name in schema() if fnmatchcase(name, pattern)]
    assert matched
    assert not OPEN.keys() & set(matched)


def test_a_key_is_offered_where_its_package_is_installed() -> None:
    bounds = Bounds(context=1024, epochs=3)
    alone = {key for key, rule in OPEN.items() if rule.package}
    assert {"quantization_bit", "use_galore", "use_badam"} <= alone
    assert not alone & offered(bounds).keys()
    both = msgspec.structs.replace(bounds, packages=frozenset({"galore-torch", "bitsandbytes"}))
    assert {"use_galore", "galore_rank"} <= offered(both).keys()
    assert "quantization_bit" not in offered(both)
    assert "quantization_bit" in offered(msgspec.structs.replace(both, device="cuda"))
    assert "use_badam" not in offered(both)


def test_the_lock_files_say_which_packages_there_are() -> None:
    assert {"trl", "peft", "docstring-parser"} <= installed("cpu")
    assert installed("cuda") - installed("cpu") >= {"deepspeed"}
    assert not {rule.package for rule in OPEN.values()} & installed("cuda"), "then docs/methods.md has to be amended"


def test_choices_are_a_subset_of_what_llama_factory_takes() -> None:
    for name, rule in OPEN.items():
        if known := schema()[name].choices:
            assert set(rule.choices) <= set(known), name


def test_bounds_hold_the_defaults_of_llama_factory() -> None:
    for name, rule in OPEN.items():
        default = schema()[name].default
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert rule.low is None or default >= rule.low, name
            assert rule.high is None or default <= rule.high, name


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("output_dir", "the harness owns it"),
        ("hub_token", "no hub"),
        ("trust_remote_code", "code or files"),
        ("seed", "luck"),
        ("max_steps", "num_train_epochs"),
        ("ref_model", "the untrained model is the reference"),
        ("ppo_epochs", "ImportError"),
        ("use_cpu", "devices"),
        ("video_fps", "not offered"),
    ],
)
def test_a_refusal_says_why(key: str, words: str) -> None:
    assert words in why_closed(key)
