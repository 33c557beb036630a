from fnmatch import fnmatchcase

import pytest

from scenarios.finetune.arguments import schema
from scenarios.finetune.keys import CLOSED, OPEN, why_closed


def test_every_open_key_is_an_argument_of_the_pinned_llama_factory() -> None:
    assert OPEN.keys() <= schema().keys()


@pytest.mark.parametrize("pattern", [pattern for group in CLOSED for pattern in group.patterns.split()])
def test_a_closed_pattern_matches_arguments_and_no_open_key(pattern: str) -> None:
    matched = [name for name in schema() if fnmatchcase(name, pattern)]
    assert matched
    assert not OPEN.keys() & set(matched)


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
        ("pref_beta", "preference"),
        ("use_cpu", "devices"),
        ("video_fps", "not offered"),
    ],
)
def test_a_refusal_says_why(key: str, words: str) -> None:
    assert words in why_closed(key)
