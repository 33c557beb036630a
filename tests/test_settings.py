"""Settings from every source, their precedence, and what a mistake says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from agent.errors import UsageError
from agent.options import PROPOSERS, RUNNERS
from agent.settings import LAYOUT, Settings, load, settings_table

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = Path(__file__).parent / "fixtures" / "env"


def given(
    cwd: Path,
    *,
    dotenv: str = "",
    yaml: str = "",
    environ: dict[str, str] | None = None,
    cli: dict[str, Any] | None = None,
) -> Settings:
    if dotenv:
        (cwd / ".env").write_text(dotenv)
    if yaml:
        (cwd / "lab.yaml").write_text(yaml)
    return load(cli or {}, Path("lab.yaml") if yaml else None, environ or {}, cwd)


def refused(cwd: Path, **sources: Any) -> str:
    with pytest.raises(UsageError) as raised:
        given(cwd, **sources)
    return str(raised.value)


def test_the_guides_defaults(tmp_path: Path) -> None:
    settings = given(tmp_path)
    assert settings.file_path == tmp_path / "workspace"
    assert settings.docker_enable_cache is False
    assert settings.update_llama_factory is True
    assert settings.benchmark_datasets == ("aime25",)
    assert settings.benchmark_limit is None
    assert settings.benchmark_timeout == 3600
    assert settings.judge_model == "gpt-4"
    assert settings.debug_timeout == 36000
    assert settings.full_timeout == 360000
    assert settings.chat_endpoint() is None
    assert settings.judge_endpoint() is None
    assert {settings.origin(name) for name in Settings.model_fields} == {"default"}


def test_the_guides_development_example(tmp_path: Path) -> None:
    settings = given(tmp_path, dotenv=(EXAMPLES / "development.env").read_text())
    assert settings.file_path == Path("/home/user/workspace/finetune")
    assert settings.docker_enable_cache is True
    assert settings.update_llama_factory is False
    assert settings.benchmark_datasets == ("aime25", "gsm8k")
    assert settings.benchmark_limit == 10
    judge = settings.judge_endpoint()
    assert judge is not None
    assert (judge.model, judge.api_key, judge.base_url) == ("gpt-4", "sk-xxxxx", "http://10.150.240.117:38805")
    assert (settings.debug_timeout, settings.full_timeout) == (3600, 36000)
    assert settings.chat_endpoint() is None, "a judge is no agent"


def test_the_guides_production_example(tmp_path: Path) -> None:
    settings = given(tmp_path, dotenv=(EXAMPLES / "production.env").read_text())
    assert settings.file_path == Path("/data/finetune")
    assert settings.docker_enable_cache is False
    assert settings.update_llama_factory is True
    assert settings.benchmark_datasets == ("aime25", "aime24", "gsm8k", "mmlu", "math")
    assert settings.benchmark_limit is None
    assert (settings.debug_timeout, settings.full_timeout, settings.benchmark_timeout) == (36000, 360000, 7200)


SOURCES = {
    "yaml": "proposer_seed: 1\n",
    "dotenv": "\n# a comment\nFT_PROPOSER_SEED=2\n",
    "environ": {"FT_PROPOSER_SEED": "3"},
    "cli": {"proposer_seed": 4},
}


@pytest.mark.parametrize(
    ("count", "value", "origin"),
    [(0, 0, "default"), (1, 1, "lab.yaml:1"), (2, 2, ".env:3"), (3, 3, "environment"), (4, 4, "command line")],
)
def test_precedence(tmp_path: Path, count: int, value: int, origin: str) -> None:
    settings = given(tmp_path, **dict(list(SOURCES.items())[:count]))  # type: ignore[arg-type]
    assert (settings.proposer_seed, settings.origin("proposer_seed")) == (value, origin)


def test_an_option_that_was_not_given_outranks_nothing(tmp_path: Path) -> None:
    assert given(tmp_path, environ={"FT_RUNNER": "local"}, cli={"runner": None}).runner == "local"


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        ({"environ": {"FT_BENCHMARK_LIMT": "3"}}, ["environment", "FT_BENCHMARK_LIMT", "FT_BENCHMARK_LIMIT?"]),
        ({"dotenv": "A=1\n\nFT_JUDGE_MODLE=x\n"}, [".env:3", "FT_JUDGE_MODLE", "FT_JUDGE_MODEL?"]),
        ({"yaml": "runner: local\nfile_pth: x\n"}, ["lab.yaml:2", "file_pth", "FT_FILE_PATH?"]),
        ({"yaml": "FT_FILE_PTH: x\n"}, ["lab.yaml:1", "FT_FILE_PTH", "FT_FILE_PATH?"]),
        ({"environ": {"FT_ZZZZZZ": "1"}}, ["FT_ZZZZZZ", "FT_FILE_PATH", "FT_RUNNER"]),
        ({"environ": {"FT_file_path": "1"}}, ["FT_file_path", "FT_FILE_PATH?"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path, sources: Any, names: list[str]) -> None:
    message = refused(tmp_path, **sources)
    assert all(name in message for name in names), message


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({"environ": {"FT_BENCHMARK_TIMEOUT": "ten"}}, ["environment", "FT_BENCHMARK_TIMEOUT", "'ten'", "integer"]),
        ({"environ": {"FT_BENCHMARK_LIMIT": "0"}}, ["FT_BENCHMARK_LIMIT", "'0'", "1"]),
        ({"dotenv": "FT_BENCHMARK_DATASETS=aime25,gsm8k\n"}, [".env:1", "'aime25,gsm8k'", "JSON array"]),
        ({"environ": {"FT_BENCHMARK_DATASETS": '"aime25"'}}, ["FT_BENCHMARK_DATASETS", "JSON array"]),
        ({"environ": {"FT_BENCHMARK_DATASETS": "[]"}}, ["FT_BENCHMARK_DATASETS", "at least one"]),
        ({"environ": {"FT_BENCHMARK_DATASETS": "[3]"}}, ["FT_BENCHMARK_DATASETS", "string"]),
        ({"environ": {"FT_COLUMNS": '["problem"]'}}, ["FT_COLUMNS", "JSON object"]),
        ({"environ": {"FT_COLUMNS": '{"prompt": ""}'}}, ["FT_COLUMNS", "empty"]),
        ({"environ": {"FT_DOCKER_ENABLE_CACHE": "maybe"}}, ["FT_DOCKER_ENABLE_CACHE", "'maybe'", "boolean"]),
        ({"yaml": "runner: ray\n"}, ["lab.yaml:1", "FT_RUNNER", "'ray'", "'local'"]),
        ({"environ": {"FT_MAX_EPOCHS": "inf"}}, ["FT_MAX_EPOCHS", "'inf'"]),
        ({"environ": {"FT_PRICE_INPUT": "-1"}}, ["FT_PRICE_INPUT", "'-1'"]),
        ({"yaml": "runner: local\nFT_RUNNER: docker\n"}, ["lab.yaml:2", "twice", "lab.yaml:1"]),
        ({"environ": {"FT_GPUS": "0;1"}}, ["environment", "FT_GPUS", "'0;1'", "0,1"]),
        ({"environ": {"FT_GPUS": "0,none"}}, ["FT_GPUS"]),
        ({"dotenv": "FT_TRIAL_DISK=much\n"}, [".env:1", "FT_TRIAL_DISK", "'much'", "20GB"]),
        ({"environ": {"FT_TRIAL_DISK": "0"}}, ["FT_TRIAL_DISK", "'0'"]),
        ({"yaml": "- runner\n"}, ["lab.yaml", "mapping"]),
        ({"yaml": "runner: [\n"}, ["lab.yaml:", "not valid YAML"]),
        ({"dotenv": "FT_RUNNER=local\nthis is = no line\n"}, [".env:2"]),
    ],
)
def test_a_bad_value_names_source_key_and_value(tmp_path: Path, sources: Any, words: list[str]) -> None:
    message = refused(tmp_path, **sources)
    assert all(word in message for word in words), message
    assert message.count("\n") == 1, "one message and one hint"


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.yaml"):
        load({}, Path("nowhere.yaml"), {}, tmp_path)


def test_only_the_value_that_counts_is_judged(tmp_path: Path) -> None:
    assert given(tmp_path, dotenv="FT_RUNNER=ray\n", environ={"FT_RUNNER": "local"}).runner == "local"


@pytest.mark.parametrize("text", ["None", "none", "", " ", "null"])
def test_no_limit(tmp_path: Path, text: str) -> None:
    settings = given(tmp_path, dotenv="FT_BENCHMARK_LIMIT=10\n", environ={"FT_BENCHMARK_LIMIT": text})
    assert settings.benchmark_limit is None


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("20GB", 20 * 10**9),
        ("20 GiB", 20 * 2**30),
        ("1.5T", 1_500_000_000_000),
        ("512m", 512_000_000),
        ("20000", 20_000),
        ("None", None),
    ],
)
def test_a_size_of_the_disk(tmp_path: Path, text: str, bytes_: int | None) -> None:
    assert given(tmp_path, environ={"FT_TRIAL_DISK": text}).trial_disk_bytes == bytes_


def test_the_disk_has_a_limit_by_default(tmp_path: Path) -> None:
    assert given(tmp_path).trial_disk_bytes == 100 * 10**9


@pytest.mark.parametrize(
    ("yaml", "gpus"),
    [
        ("gpus: 1", "1"),
        ("gpus: 1, 3", "1,3"),
        ("gpus: none", "none"),
        ("gpus: GPU-8f", "GPU-8f"),
        ("gpus:", None),
    ],
)
def test_a_list_of_gpus(tmp_path: Path, yaml: str, gpus: str | None) -> None:
    assert given(tmp_path, yaml=f"{yaml}\n").gpus == gpus


def test_an_empty_value_counts_as_not_set(tmp_path: Path) -> None:
    settings = given(tmp_path, dotenv="FT_JUDGE_MODEL=judge\n", environ={"FT_JUDGE_MODEL": "", "FT_FULL_TIMEOUT": ""})
    assert settings.judge_model == "judge"
    assert settings.full_timeout == 360000
    assert given(tmp_path, environ={"FT_BENCHMARK_DATASETS": ""}).origin("benchmark_datasets") == "default"


def test_native_yaml_values(tmp_path: Path) -> None:
    settings = given(
        tmp_path,
        yaml="FT_BENCHMARK_DATASETS: [gsm8k]\ncolumns: {prompt: problem}\nprice_input: 1e-1\nbenchmark_limit: null\n"
        "OPENAI_API_KEY: sk-1\n",
    )
    assert settings.benchmark_datasets == ("gsm8k",)
    assert settings.columns == {"prompt": "problem"}
    assert settings.price_input == pytest.approx(0.1)


def test_set_and_unset_benchmarks_can_be_told_apart(tmp_path: Path) -> None:
    settings = given(tmp_path, environ={"FT_BENCHMARK_DATASETS": '["aime25"]'})
    assert settings.benchmark_datasets == Settings().benchmark_datasets
    assert settings.origin("benchmark_datasets") == "environment"


def test_other_names_are_let_through_and_exported(tmp_path: Path) -> None:
    settings = given(
        tmp_path,
        dotenv="export HF_ENDPOINT=http://hub\nHF_TOKEN='hf_1'\nOPENAI_BASE_URL=http://${HOST}/v1\nHOST=ignored\n",
        environ={"HF_TOKEN": "hf_2", "HOST": "box", "PATH": "/bin"},
    )
    environ = {"HF_TOKEN": "hf_2"}
    settings.export(environ)
    assert environ["HF_ENDPOINT"] == "http://hub"
    assert environ["HF_TOKEN"] == "hf_2", "what the shell says is kept"
    chat = settings.chat_endpoint()
    assert chat is not None
    assert chat.base_url == "http://box/v1"


OPENAI = {"OPENAI_API_KEY": "sk-openai", "OPENAI_BASE_URL": "http://openai"}


@pytest.mark.parametrize(
    ("environ", "chat", "judge"),
    [
        ({}, None, None),
        ({"FT_CHAT_MODEL": "m", "FT_JUDGE_MODEL": "j"}, None, None),
        (OPENAI, ("sk-openai", "http://openai"), ("sk-openai", "http://openai")),
        ({"OPENAI_API_BASE": "http://old"}, (None, "http://old"), (None, "http://old")),
        ({**OPENAI, "OPENAI_API_BASE": "http://old"}, ("sk-openai", "http://openai"), ("sk-openai", "http://openai")),
        ({"FT_CHAT_API_KEY": "sk-chat"}, ("sk-chat", None), ("sk-chat", None)),
        ({"FT_CHAT_API_BASE": "http://chat"}, (None, "http://chat"), (None, "http://chat")),
        ({"FT_CHAT_API_BASE": "http://chat", **OPENAI}, ("sk-openai", "http://chat"), ("sk-openai", "http://chat")),
        # A key is never sent to the other owner's URL.
        (
            {"FT_CHAT_API_BASE": "http://chat", "FT_JUDGE_API_KEY": "sk-j"},
            (None, "http://chat"),
            ("sk-j", None),
        ),
        (
            {"FT_CHAT_API_KEY": "sk-chat", "FT_JUDGE_API_BASE": "http://judge"},
            ("sk-chat", None),
            (None, "http://judge"),
        ),
        ({"FT_JUDGE_API_BASE": "http://judge"}, None, (None, "http://judge")),
    ],
)
def test_endpoints(tmp_path: Path, environ: dict[str, str], chat: Any, judge: Any) -> None:
    settings = given(tmp_path, environ=environ)
    for endpoint, expected in ((settings.chat_endpoint(), chat), (settings.judge_endpoint(), judge)):
        assert (endpoint and (endpoint.api_key, endpoint.base_url)) == expected


def test_keys_are_never_shown(tmp_path: Path) -> None:
    settings = given(
        tmp_path,
        dotenv="FT_JUDGE_API_KEY=sk-secret1\n",
        environ={"FT_CHAT_API_KEY": "sk-secret2", "OPENAI_API_KEY": "sk-secret3"},
    )
    shown = (
        f"{settings!r} {settings} {settings.chat_endpoint()} {settings.judge_endpoint()} {settings.model_dump_json()}"
    )
    assert "sk-secret" not in shown
    assert "sk-secret" not in refused(tmp_path, yaml="chat_api_key: [sk-secret4]\n")
    assert "sk-secret" not in refused(tmp_path, environ={"FT_CHAT_API_BASE": "sk-secret5"}), (
        "pasted into the wrong place"
    )


def test_paths_start_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    settings = given(tmp_path, environ={"FT_FILE_PATH": "../lab", "FT_ENVIRONMENTS": "~/venvs"})
    assert settings.file_path == tmp_path.parent / "lab"
    assert settings.environments == Path("/home/someone/venvs")
    assert given(tmp_path).environments == Path("/home/someone/.cache/ftloop/environments")


def test_the_default_workspace_is_said(tmp_path: Path) -> None:
    assert str(tmp_path / "workspace") in given(tmp_path).notes()[0]
    assert given(tmp_path, environ={"FT_FILE_PATH": "x"}).notes() == []


def test_the_workspaces_layout(tmp_path: Path) -> None:
    settings = given(tmp_path, environ={"FT_FILE_PATH": "deep/lab"})
    assert settings.workspace() == tmp_path / "deep" / "lab"
    assert sorted(path.name for path in settings.workspace().iterdir()) == sorted(LAYOUT)


@pytest.mark.parametrize("path", ["taken", "taken/below", "/proc/nowhere"])
def test_a_workspace_that_cannot_be_written(tmp_path: Path, path: str) -> None:
    (tmp_path / "taken").write_text("a file")
    settings = given(tmp_path, dotenv=f"FT_FILE_PATH={path}\n")
    with pytest.raises(UsageError) as raised:
        settings.workspace()
    assert ".env:1" in str(raised.value)
    assert "FT_FILE_PATH" in raised.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workspace_without_permission(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="denied"):
        given(tmp_path, environ={"FT_FILE_PATH": "lab"}).workspace()


def test_the_example_loads_as_it_is(tmp_path: Path) -> None:
    settings = given(tmp_path, dotenv=(ROOT / ".env.example").read_text())
    assert settings.model_dump() == given_defaults(tmp_path)
    assert settings.origin("benchmark_datasets") == "default", "copied, it must not change the demo's benchmark"


def test_the_example_names_every_setting_with_its_default(tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text()
    lines = dict(re.findall(r"^(?:# )?(FT_[A-Z_]+)=(.*)$", text, re.MULTILINE))
    assert lines == {name: default for name, default, _ in settings_table()}
    everything = re.sub(r"^# (?=FT_[A-Z_]+=)", "", text, flags=re.MULTILINE)
    assert given(tmp_path, dotenv=everything).model_dump() == given_defaults(tmp_path)


def given_defaults(cwd: Path) -> dict[str, Any]:
    return load({}, None, {}, cwd / "elsewhere").model_copy(update={"file_path": cwd / "workspace"}).model_dump()


def test_the_readmes_table_names_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| *`(FT_[A-Z_]+)` *\| *([^|]*?) *\|", (ROOT / "README.md").read_text(), re.MULTILINE)
    table = {name: default.strip("`") for name, default in rows}
    for name, default, description in settings_table():
        assert description, name
        assert name in table, f"README.md's settings table lacks {name}"
        assert table[name] in (default, default or "unset"), f"README.md gives {name} another default"
    assert set(table) == {name for name, _, _ in settings_table()}, "README.md names settings that do not exist"


def test_the_command_line_offers_what_the_settings_accept() -> None:
    assert get_args(Settings.model_fields["runner"].annotation) == RUNNERS
    assert get_args(Settings.model_fields["proposer"].annotation) == PROPOSERS


def test_importing_has_no_effect(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FT_NONSENSE=1\n")
    script = "import agent.settings"
    subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=tmp_path, env={"PATH": os.environ["PATH"], "FT_RUNNER": "bad"}
    )
    assert [path.name for path in tmp_path.iterdir()] == [".env"]
