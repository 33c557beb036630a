"""The command `ftloop` as a user types it: what README says of doctor and clean, exit codes, help."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.end_to_end.command import User
from tests.servers.hub_server import Hub
from tests.servers.openai_server import ChatAnswer, ChatServer

KEY = "sk-nobody-may-see-this-key"


class BrokenEngine(BaseHTTPRequestHandler):
    """A Docker engine that says its version and that it is alive, and nothing else."""

    def do_GET(self) -> None:
        alive = self.path.endswith(("/_ping", "/version"))
        body = json.dumps({"ApiVersion": "1.44"} if alive else {"message": "out of order"}).encode()
        self.send_response(200 if alive else 500)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


@pytest.fixture
def here(user: User) -> dict[str, str]:
    """Nothing outside this test is looked at: no engine, no hub, no environments of the machine."""
    return {
        "DOCKER_HOST": f"unix://{user.home}/nobody.sock",
        "FT_ENVIRONMENTS": str(user.home / "environments"),
        "HF_HUB_OFFLINE": "1",
    }


def test_doctor_of_a_ready_machine(user: User, here: dict[str, str]) -> None:
    command = shlex.split("ftloop doctor")
    with Hub() as hub, ChatServer(lambda _: ChatAnswer("ready"), key=KEY) as server:
        configured = f"FT_CHAT_API_KEY={KEY}\nFT_CHAT_API_BASE={server.url}\nHF_ENDPOINT={hub.url}\n"
        (user.home / ".env").write_text(configured)
        started = time.monotonic()
        output = user.run(*command, env={**here, "HF_HUB_OFFLINE": ""})
        assert time.monotonic() - started < 30
        assert hub.requests
    assert "FT_CHAT_API_KEY (.env:1)" in output
    assert f"gpt-4o-mini at {server.url} answered" in output
    assert f"{hub.url} answered" in output
    assert "\nready; " in output
    assert "\x1b" not in output, "no colours where the output is no terminal"
    assert KEY not in output
    assert not user.workspace.exists()


def test_doctor_of_a_machine_with_a_problem(user: User, here: dict[str, str]) -> None:
    environ = {**here, "FT_RUNNER": "docker", "FT_CHAT_API_BASE": "http://127.0.0.1:9/v1"}
    output = user.run("ftloop", "doctor", env=environ, code=3)
    assert output.count("\nproblem  ") == 2
    assert "nobody.sock" in output
    assert "FT_CHAT_API_BASE" in output
    assert "2 problems to mend" in output


def test_doctor_says_what_is_wrong_with_settings(user: User, here: dict[str, str]) -> None:
    output = user.run("ftloop", "doctor", env={**here, "FT_BENCHMARK_LIMITS": "3", "FT_CUTOFF_LEN": "x"}, code=3)
    assert "did you mean FT_BENCHMARK_LIMIT?" in output
    assert "FT_CUTOFF_LEN" in output
    assert "Traceback" not in output


def test_doctor_for_programs(user: User, here: dict[str, str]) -> None:
    (user.home / "lab.yaml").write_text("file_path: elsewhere\n")
    command = shlex.split("ftloop doctor --json")
    found = json.loads(user.run(*command, "--config", "lab.yaml", env=here))
    assert {finding["status"] for finding in found} <= {"ok", "warning", "problem"}
    assert all(set(finding) == {"name", "status", "found", "advice"} for finding in found)
    (workspace,) = [finding["found"] for finding in found if finding["name"] == "workspace"]
    assert "elsewhere" in workspace


def left_behind(user: User) -> list[Path]:
    """Two half-made downloads, of which this process works on the second."""
    works = [user.workspace / "models" / ".partial" / name for name in ("dead", "live")]
    for work in works:
        (work / "files").mkdir(parents=True)
        (work / "files" / "model.safetensors").write_bytes(bytes(3_200_000))
        (work / "lock").touch()
    return works


def test_clean_says_what_it_removed_and_how_much(user: User, here: dict[str, str]) -> None:
    dead, live = left_behind(user)
    with (live / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        dry = user.run(*shlex.split("ftloop clean --dry-run"), env=here)
        assert (dead / "files").exists()
        output = user.run(*shlex.split("ftloop clean"), env=here)
    assert not (dead / "files").exists()
    assert (live / "files").exists()
    assert [line.split()[:3] for line in output.splitlines() if "models/.partial" in line] == [
        ["removed", "3.2", "MB"],
        ["kept", "models/.partial/live:", "is"],
    ]
    assert output.endswith("freed 3.2 MB\n")
    assert "would go" in dry
    assert dry.endswith("would free 3.2 MB\n")
    (dead / "files").mkdir()
    assert "freed" in user.run(*shlex.split("ftloop clean --checkpoints --environments"), env=here)
    assert user.run("ftloop", "clean", env=here) == "nothing to remove\n"


def test_clean_says_what_it_could_not_do(user: User, here: dict[str, str]) -> None:
    output = user.run(*shlex.split("ftloop clean --images --checkpoints"), env=here)
    assert "no engine answers, so there are no images to remove" in output
    with ThreadingHTTPServer(("127.0.0.1", 0), BrokenEngine) as engine:
        threading.Thread(target=engine.serve_forever, daemon=True).start()
        there = {**here, "DOCKER_HOST": f"tcp://127.0.0.1:{engine.server_port}"}
        output = user.run(*shlex.split("ftloop clean --images"), env=there, code=3)
        engine.shutdown()
    assert "failed " in output
    assert "out of order" in output
    user.run("ftloop", "clean", env={**here, "FT_RUNNER": "dockr"}, code=2)


@pytest.mark.parametrize("word", ["doctor", "clean"])
def test_help_documents_the_exit_codes_and_is_quick(user: User, word: str) -> None:
    user.run("ftloop", word, "--help")  # warm
    started = time.monotonic()
    output = user.run("ftloop", word, "--help")
    assert time.monotonic() - started < 0.6 * (1 + os.getloadavg()[0])
    assert "exit codes:\n  0 " in output
    assert "\n  3 " in output


def test_an_unknown_word_is_a_usage_error(user: User) -> None:
    assert "invalid choice" in user.run("ftloop", "cleen", code=2)
    user.run("ftloop", "clean", "--image", code=2)
