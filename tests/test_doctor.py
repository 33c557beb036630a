"""`ftloop doctor` against real endpoints, a real hub, real directories; an engine's API is played by a server."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agent import checks
from agent.checks import Finding
from agent.doctor import LIMIT, at_once, examine, render
from agent.errors import MachineError, UsageError
from agent.hardware import Hardware
from agent.run.containers import connect, docker_answers
from agent.settings import Endpoint, Settings, load
from tests.servers.hub_server import Hub
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer
from tests.test_models import make_model

CPU = Hardware(cores=2, memory=8 << 30)
GPU = Hardware(cores=16, memory=128 << 30, gpus=(80 << 30, 80 << 30))
KEY = "sk-nobody-may-see-this-key"


def ready(_: ChatRequest) -> ChatAnswer:
    return ChatAnswer("ready")


def given(cwd: Path, **environ: str) -> Settings:
    return load({}, None, environ, cwd)


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing outside this machine is asked."""
    environments = tmp_path / "environments"
    return {"FT_RUNNER": "local", "FT_ENVIRONMENTS": str(environments), "HF_HUB_OFFLINE": "1"}


def of(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def problems(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings if finding.status == "problem"]


# The whole


def test_a_bare_machine_is_ready_with_warnings_and_nothing_is_written(tmp_path: Path, offline: dict[str, str]) -> None:
    found = examine(None, offline, tmp_path)
    assert problems(found) == []
    assert {of(found, name).status for name in ("environments", "model", "hub")} == {"warning"}
    assert {of(found, name).status for name in ("versions", "settings", "keys", "workspace", "engine")} == {"ok"}
    assert all(finding.advice for finding in found if finding.status != "ok")
    assert not list(tmp_path.iterdir())


def test_keys_are_named_with_their_origin_and_never_shown(tmp_path: Path, offline: dict[str, str]) -> None:
    (tmp_path / ".env").write_text(f"\nFT_CHAT_API_KEY={KEY}\nHF_TOKEN={KEY}\n")
    with ChatServer(
        lambda r: ChatAnswer(status=500, error=f"bad key {r.headers['authorization']}"), key=None
    ) as server:
        environ = {**offline, "FT_CHAT_API_BASE": server.url, "OPENAI_API_KEY": KEY}
        found = examine(None, environ, tmp_path)
    assert of(found, "keys").found == "FT_CHAT_API_KEY (.env:2), OPENAI_API_KEY (environment), HF_TOKEN (.env)"
    assert of(found, "proposer").status == "problem"
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}", "the key was there to be leaked"
    assert KEY not in render(found) + str(found)


def test_every_bad_setting_is_a_line_with_its_origin(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        f"FT_CHAT_API_BASE={KEY}\n\n# a comment\nFT_CUTOFF_LEN=2\nFT_RUNNER=dockr\nFT_LIMIT=3\n"
    )
    found = examine(None, {"FT_RUNNER": "local", "FT_BENCHMARK_DATASETS": "gsm8k"}, tmp_path)
    lines = [finding.found for finding in found if finding.name == "settings"]
    assert [line.split(": ")[0] for line in lines] == [".env:1", ".env:4", ".env:6", "environment"]
    assert ["FT_LIMIT" in line for line in lines] == [False, False, True, False]
    assert problems(found) == ["settings"] * 4
    assert of(found, "versions").status == "ok", "what needs no settings is checked all the same"
    assert KEY not in render(found)


@pytest.mark.parametrize("text", ["this is no assignment\n", "\xff\xfe"])
def test_an_unreadable_env_file_is_a_problem(tmp_path: Path, text: str) -> None:
    (tmp_path / ".env").write_text(text, encoding="latin-1")
    found = examine(None, {"FT_RUNNER": "dockr"}, tmp_path)
    assert [".env" in finding.found for finding in found if finding.name == "settings"] == [True, False]


def test_a_bad_config_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text("runner: dockr\n")
    assert "lab.yaml:1" in of(examine(Path("lab.yaml"), {}, tmp_path), "settings").found


def test_checks_that_wait_wait_side_by_side(tmp_path: Path, offline: dict[str, str]) -> None:
    with ChatServer(lambda _: ChatAnswer("ready", delay=60.0)) as server:
        environ = {
            **offline,
            "FT_CHAT_API_BASE": server.url,
            "FT_JUDGE_API_BASE": server.url,
            "FT_BENCHMARK_DATASETS": '["aime25"]',
        }
        started = time.monotonic()
        found = examine(None, environ, tmp_path)
    assert time.monotonic() - started < LIMIT + 2
    assert {"proposer", "judge"} <= set(problems(found))
    assert len(server.requests) == 2


# The engine room of it


def test_a_check_that_hangs_holds_up_nobody() -> None:
    hang = threading.Event()

    def hanging() -> Iterator[Finding]:
        yield Finding(name="first", status="ok", found="before it hung")
        hang.wait(60)

    def fine() -> Iterator[Finding]:
        yield Finding(name="fine", status="ok", found="here")

    started = time.monotonic()
    found = at_once([("hanging", hanging), ("fine", fine)], limit=0.3)
    hang.set()
    assert time.monotonic() - started < 5
    assert [(finding.name, finding.status) for finding in found] == [
        ("first", "ok"),
        ("hanging", "problem"),
        ("fine", "ok"),
    ]


def test_a_check_that_breaks_is_a_finding_without_what_it_held() -> None:
    def broken() -> list[Finding]:
        raise ValueError(KEY)

    def refusing() -> list[Finding]:
        raise UsageError("this is wrong", "mend it")

    defect, refused = at_once([("broken", broken), ("refusing", refusing)])
    assert defect.status == "problem"
    assert "ValueError at test_doctor.py:" in defect.found
    assert KEY not in str(defect)
    assert (refused.found, refused.advice) == ("this is wrong", "mend it")


def test_lines_are_aligned_and_coloured_on_demand() -> None:
    found = [
        Finding(name="a", status="ok", found="fine"),
        Finding(name="longer", status="warning", found="odd\x1b[2J", advice="look"),
        Finding(name="b", status="problem", found="bad", advice="mend it"),
    ]
    assert render(found).splitlines() == [
        "ok       a       fine",
        "warning  longer  odd",
        "                 -> look",
        "problem  b       bad",
        "                 -> mend it",
        "",
        "1 problem to mend before a study can run; 1 warning",
    ]
    assert "\x1b[33mwarning\x1b[0m" in render(found, color=True)
    assert render(found[:1]).endswith("\nready")


# Language models


def test_an_endpoint_is_asked_once_and_its_answer_timed(tmp_path: Path) -> None:
    with ChatServer(ready) as server:
        (found,) = checks.proposer(given(tmp_path, FT_CHAT_API_BASE=server.url, FT_CHAT_MODEL="the-model"))
    assert found.status == "ok"
    assert found.found.startswith(f"the-model at {server.url} answered in 0.")
    assert len(server.requests) == 1


def test_a_refused_key_says_which_setting_to_change(tmp_path: Path) -> None:
    with ChatServer(ready, key="another key") as server, pytest.raises(MachineError) as raised:
        list(checks.proposer(given(tmp_path, FT_CHAT_API_BASE=server.url, FT_CHAT_API_KEY=KEY)))
    assert "FT_CHAT_API_KEY" in raised.value.hint
    assert KEY not in str(raised.value)


def test_a_failing_endpoint_is_not_asked_again() -> None:
    with ChatServer(lambda _: ChatAnswer(status=503)) as server, pytest.raises(MachineError, match="503"):
        checks.answered(Endpoint("m", server.url, None), "FT_CHAT")
    assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [ChatAnswer("ready", delay=60.0), ChatAnswer("ready", drip=1.0)])
def test_a_silent_or_endless_endpoint_is_given_up(answer: ChatAnswer) -> None:
    started = time.monotonic()
    with ChatServer(lambda _: answer) as server, pytest.raises(MachineError) as raised:
        checks.answered(Endpoint("m", server.url, None), "FT_JUDGE", patience=0.5)
    assert time.monotonic() - started < 10, "with the import of the client"
    assert "FT_JUDGE_API_BASE" in raised.value.hint


def test_who_proposes_without_an_endpoint(tmp_path: Path) -> None:
    (nobody,) = checks.proposer(given(tmp_path))
    (asked,) = checks.proposer(given(tmp_path, FT_PROPOSER="tpe", FT_CHAT_API_BASE="http://127.0.0.1:9"))
    assert nobody.found.startswith("TPE, because no endpoint")
    assert asked.found == "TPE (FT_PROPOSER=tpe)"
    with pytest.raises(UsageError, match="--proposer llm"):
        list(checks.proposer(given(tmp_path, FT_PROPOSER="llm")))


def test_the_judge_is_asked_only_where_a_benchmark_needs_one(tmp_path: Path) -> None:
    with ChatServer(ready) as server:
        judge = {"FT_JUDGE_API_BASE": server.url, "FT_JUDGE_MODEL": "the-judge"}
        (unneeded,) = checks.judge(given(tmp_path, **judge, FT_BENCHMARK_DATASETS='["gsm8k"]'))
        assert server.requests == []
        (needed,) = checks.judge(given(tmp_path, **judge, FT_BENCHMARK_DATASETS='["gsm8k", "aime25"]'))
    assert unneeded.found == "not needed by the configured benchmarks"
    assert needed.found.startswith("the-judge at")
    with pytest.raises(UsageError, match="aime25 needs one"):
        list(checks.judge(given(tmp_path, FT_BENCHMARK_DATASETS='["aime25"]')))
    with pytest.raises(UsageError, match="aime25 needs one"):
        list(checks.judge(given(tmp_path, FT_BENCHMARK_DATASETS='["gsm8k"]', FT_SEARCH_BENCHMARKS='["aime25"]')))
    (default,) = checks.judge(given(tmp_path))
    assert (default.status, default.found.split(" needs")[0]) == ("warning", "aime25, the default benchmark,")


# The hub


def test_a_hub_that_answers_anything_is_there_unless_it_is_ill() -> None:
    with Hub() as hub:
        (found,) = checks.huggingface({"HF_ENDPOINT": hub.url})
        assert len(hub.requests) == 1
    assert found.status == "ok"
    with ChatServer(ready) as not_a_hub:  # knows no HEAD: 501
        (ill,) = checks.huggingface({"HF_ENDPOINT": not_a_hub.url})
    assert (ill.status, "501" in ill.found) == ("warning", True)


def test_a_hub_that_is_down_offline_or_mistyped() -> None:
    (away,) = checks.huggingface({"HF_ENDPOINT": "http://user:secret@127.0.0.1:9"})
    (offline,) = checks.huggingface({"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "true"})
    assert away.status == offline.status == "warning"
    assert "secret" not in str(away)
    assert "Connection refused" in away.found
    assert "HF_HUB_OFFLINE" in offline.found
    with pytest.raises(UsageError, match="HF_ENDPOINT"):
        list(checks.huggingface({"HF_ENDPOINT": "file:///etc/passwd"}))


def test_a_hub_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        started = time.monotonic()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        (found,) = checks.huggingface({"HF_ENDPOINT": url}, patience=0.3)
    assert time.monotonic() - started < 5
    assert found.status == "warning"


# GPUs, disk, model, benchmarks


def test_only_the_gpus_that_are_set_count(
    tmp_path: Path, offline: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '0, GPU-aa, 8192'\necho '1, GPU-bb, 81920'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def found(**environ: str) -> list[Finding]:
        return examine(None, {**offline, "FT_PROPOSER": "tpe", **environ}, tmp_path)

    assert of(found(), "GPUs").found == "8 GiB, 80 GiB"
    chosen = found(FT_GPUS="1")
    assert of(chosen, "GPUs").found == "80 GiB (FT_GPUS=1)"
    assert "trains with LoRA in 80 GiB" in of(chosen, "model").advice
    assert of(found(CUDA_VISIBLE_DEVICES="0"), "GPUs").found == "8 GiB"
    none = of(found(FT_GPUS="none"), "GPUs")
    assert (none.status, none.found) == ("ok", "none: FT_GPUS=none")
    wrong = of(found(FT_GPUS="7"), "GPUs")
    assert (wrong.status, wrong.found) == ("problem", "none of FT_GPUS=7 is there")


def test_a_workspace_that_cannot_be_made_or_written(tmp_path: Path) -> None:
    (found,) = checks.workspace(given(tmp_path, FT_FILE_PATH="/dev/null/lab"))
    assert found.status == "problem"
    assert "FT_FILE_PATH is from: environment" in found.found
    (tmp_path / "file").write_text("")
    assert next(checks.workspace(given(tmp_path, FT_FILE_PATH="file"))).status == "problem"


def test_the_free_space_decides(tmp_path: Path) -> None:
    huge = 1 << 60
    found = [checks.room("disk", tmp_path, *sizes, "X at a larger disk") for sizes in ((0, 0), (0, huge), (huge, huge))]
    assert [finding.status for finding in found] == ["ok", "warning", "problem"]
    assert "X at a larger disk" in found[2].advice


def test_the_model_on_disk_and_none(tmp_path: Path) -> None:
    settings = given(tmp_path)
    (none,) = checks.model(settings, CPU)
    assert none.status == "warning"
    assert "Qwen/Qwen3-0.6B" in none.advice
    make_model(settings.file_path / "models" / "lab" / "tiny")
    (found,) = checks.model(settings, CPU)
    assert found.found.startswith("lab/tiny, ")


def test_benchmark_data_on_disk_missing_and_unknown(tmp_path: Path) -> None:
    settings = given(tmp_path, FT_BENCHMARK_DATASETS='["gsm8k", "gsm9k", "none.yaml"]')
    missing, unknown, file = checks.benchmarks(settings)
    assert (missing.status, unknown.status, file.status) == ("warning", "problem", "problem")
    assert "openai/gsm8k" in missing.advice
    assert "did you mean gsm8k" in unknown.found
    laid = settings.file_path / "benchmarks" / "gsm8k"
    laid.mkdir(parents=True)
    (laid / "train.jsonl").touch()
    assert next(checks.benchmarks(settings)).status == "warning", "half of it is not enough"
    (laid / "test.jsonl").touch()
    assert next(checks.benchmarks(settings)).status == "ok"


def test_the_gpus() -> None:
    assert next(checks.gpus(GPU)).found == "80 GiB, 80 GiB"
    assert next(checks.gpus(CPU)).status != "ok"


# Where jobs run


def test_no_engine_is_a_warning_unless_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    environments = {"FT_ENVIRONMENTS": str(tmp_path / "environments")}
    warned, built, _ = checks.places(given(tmp_path, **environments), CPU)
    assert (warned.status, built.name, built.found) == ("warning", "environments", "not built: train, bench")
    (asked,) = checks.places(given(tmp_path, **environments, FT_RUNNER="docker"), CPU)
    assert asked.status == "problem"


def test_built_environments_are_found(tmp_path: Path) -> None:
    from agent.run.environments import Environments

    root = tmp_path / "environments"
    settings = given(tmp_path, FT_ENVIRONMENTS=str(root))
    for name in checks.NEEDED:
        directory = Environments(root).python(name).parents[1]
        directory.mkdir(parents=True)
        assert next(checks.local_environments(settings)).status == "warning"
        (directory / ".complete").touch()
    assert next(checks.local_environments(settings)).status == "ok"


@contextmanager
def engine_api(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Any]) -> Iterator[None]:
    """Docker's API over TCP, as far as `answer` (path without version -> JSON value; None is 404) knows it."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = "/" + self.path.split("/", 2 if self.path.startswith("/v1.") else 1)[-1].partition("?")[0]
            known: dict[str, Any] = {"/version": {"ApiVersion": "1.41", "Version": "20.10"}, "/_ping": "OK"}
            value = known.get(path) or answer(path)
            body = json.dumps(value if value is not None else {"message": "No such image"}).encode()
            self.send_response(200 if value is not None else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_address[1]}")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def test_an_engine_without_the_gpu_runtime_on_a_gpu_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = {
        "ServerVersion": "20.10.24",
        "Runtimes": {"runc": {}},
        "DockerRootDir": "/not/on/this/machine",
        "SecurityOptions": ["name=seccomp,profile=default"],
    }
    with engine_api(monkeypatch, lambda path: info if path == "/info" else None):
        settings = given(tmp_path)
        found = list(checks.places(settings, GPU))
        info["Runtimes"] = {"runc": {}, "nvidia": {}}
        mended = list(checks.places(settings, GPU))
        without = list(checks.places(settings, CPU))
        unwanted = list(checks.places(given(tmp_path, FT_GPUS="none"), GPU))
    assert [f.status for f in found] == ["ok", "problem", "warning"]
    assert "20.10.24" in found[0].found
    assert "NVIDIA container toolkit" in found[1].advice
    assert found[2].found == "not built: train, bench"
    assert (mended[1].status, without[1].status, unwanted[1].status) == ("ok", "ok", "ok")
    assert unwanted[1].found.endswith("FT_GPUS=none")


def test_images_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"ServerVersion": "1", "Runtimes": {}, "DockerRootDir": str(tmp_path), "SecurityOptions": []}
    with engine_api(monkeypatch, lambda path: info if path == "/info" else {"Id": "sha256:1"}):
        found = list(checks.places(given(tmp_path), CPU))
    assert of(found, "images").status == "ok"
    assert of(found, "confinement").found == "it has no seccomp: generated code is refused"
    assert of(found, "disk, engine").found.endswith(str(tmp_path))


def test_an_engine_that_breaks_in_between_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_api(monkeypatch, lambda _: None), pytest.raises(MachineError, match="No such image"):
        list(checks.places(given(tmp_path), CPU))


@pytest.mark.docker
def test_a_real_engine(tmp_path: Path) -> None:
    if problem := docker_answers():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(problem)
    client = connect()
    try:
        version = client.version()["Version"]
    finally:
        client.close()
    found = list(checks.places(given(tmp_path, FT_RUNNER="docker"), CPU))
    assert version in of(found, "engine").found
    assert of(found, "images").status in ("ok", "warning")
