"""Generated code tries to get out of a container that is made as for a training. One row an attempt.

Each attempt is first made outside the lock, where it succeeds: on the host as root, or in a container without the lock
where the host would be harmed (bombs, bounded all the same; devices; a new root) or where it takes more rights than
containers have by default. Then it is made inside, where it fails for the reason that the row gives, and afterwards
engine, study and reasons are looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from agent.run import Job, Mount, Outcome
from agent.run.containers import OWNER_LABEL, DockerRunner, connect
from agent.run.lock import UNPRIVILEGED, Limits

from . import attempts
from .attempts import MB

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(1800),  # the real image may be built first
    pytest.mark.skipif(os.getuid() != 0, reason="the controls outside the lock need root"),
]
KEY = "sk-not-a-real-key-1f9b"
CODE = Path(attempts.__file__).read_text(encoding="utf-8")
NOT_THERE = "FileNotFoundError"
REFUSED = "ConnectionRefusedError"
READ_ONLY = "Read-only file system"
FORBIDDEN = "Operation not permitted"
SMALL = Limits(memory=128 * MB, pids=64, disk=32 * MB)


@dataclass(frozen=True)
class Row:
    """`said`: what its log or the outcome's reason says. `control`: where the attempt succeeds.

    "host": on this machine, as root. "container": as root of a container without the lock. "mighty": in a container
    with every capability and no seccomp. "user": as user 1000 in a container without no-new-privileges.
    """

    attempt: str
    said: str
    control: Literal["host", "container", "mighty", "user"] = "host"
    kind: str = "exit"


ROWS = (
    Row("read_the_hosts_passwords", f"{NOT_THERE}|Permission denied"),
    Row("read_the_journal", NOT_THERE),
    Row("read_another_trial", NOT_THERE),
    Row("climb_out_of_the_workspace", NOT_THERE),
    Row("find_a_key_in_the_environment", "LookupError: no key in the environment"),
    Row("find_a_key_in_a_file", "LookupError: no key in any file"),
    Row("find_a_key_in_a_process", "LookupError: no key in any process"),
    Row("open_a_file_by_its_handle", f"{FORBIDDEN}: '(name_to|open_by)_handle_at'", "mighty"),
    Row("write_into_the_system", READ_ONLY, "container"),
    Row("change_the_model", READ_ONLY),
    Row("put_a_file_beside_the_programs", READ_ONLY),
    Row("mount_the_model_writable", FORBIDDEN, "mighty"),
    Row("link_to_the_model", "Invalid cross-device link"),
    Row("reach_a_service_of_the_host", REFUSED),
    Row("ask_a_name_server", REFUSED),
    Row("reach_another_machine", "Network is unreachable"),
    Row("reach_the_metadata_service", "Network is unreachable"),
    Row("open_a_raw_socket", FORBIDDEN),
    Row("reach_a_socket_without_a_path", REFUSED),
    Row("reach_a_socket_of_the_host", NOT_THERE),
    Row("talk_to_the_engine", NOT_THERE),
    Row("fork_without_end", "Resource temporarily unavailable", "container"),
    Row("eat_the_memory", "memory", "container", "oom"),
    Row("eat_the_memory_through_tmp", "No space left on device", "container"),
    Row("fill_the_disk", "FT_TRIAL_DISK", "container", "disk"),
    Row("fill_the_disk_with_empty_files", "FT_TRIAL_DISK", "container", "disk"),
    Row("fill_the_disk_unseen", "File too large", "container"),
    Row("flood_the_log", "FT_TRIAL_DISK", "host", "disk"),
    Row("run_a_program_of_roots", "still user 1000", "user"),
    Row("become_root", FORBIDDEN),
    Row("show_its_rights", "CapEff=0 CapBnd=0 CapAmb=0 NoNewPrivs=1 Seccomp=2", "container"),
    Row("make_a_device", FORBIDDEN, "container"),
    Row("open_the_kernels_devices", f"{NOT_THERE}|{FORBIDDEN}|Permission denied"),
    Row("mount_a_file_system", FORBIDDEN, "mighty"),
    Row("make_a_namespace", FORBIDDEN, "mighty"),
    Row("change_its_root", FORBIDDEN, "container"),
    Row("set_the_clock", FORBIDDEN, "mighty"),
    Row("set_a_kernel_parameter", f"{READ_ONLY}|Permission denied"),
    Row("unload_a_kernel_module", FORBIDDEN),
    Row("run_a_program_on_the_host", f"{READ_ONLY}|Permission denied"),
    Row("trace_a_process_of_the_host", f"No such process|{FORBIDDEN}"),
    Row("kill_a_process_of_the_host", "ProcessLookupError"),
    Row("take_priority", "Permission denied"),
    Row("rename_the_machine", FORBIDDEN, "mighty"),
)


@dataclass(frozen=True)
class Laboratory:
    """A study on disk, services that listen, and a process that holds a key: all that an attempt is after."""

    root: Path
    facts: dict[str, Any]

    @property
    def workspace(self) -> Path:
        return self.root / "study/trials/0002/train"

    @property
    def mounts(self) -> tuple[Mount, ...]:
        readable = (Mount(str(self.root / "model")), Mount(str(self.root / "programs")))
        return (*readable, Mount(str(self.workspace), writable=True))

    def empty_workspace(self) -> None:
        subprocess.run(["rm", "-rf", self.workspace], check=True)  # shutil.rmtree does not get to the bottom of a nest
        self.workspace.mkdir()

    def fingerprint(self) -> dict[str, str]:
        """Everything but the workspace, with owner and mode."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and not path.is_relative_to(self.workspace):
                status = path.stat()
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path)] = f"{status.st_uid} {status.st_mode:o} {content}"
        return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    root = tmp_path_factory.mktemp("lab")
    root.chmod(0o755)
    for directory in ("study/trials/0001/train", "study/trials/0002/train", "model", "programs"):
        (root / directory).mkdir(parents=True)
    (root / "study/journal.jsonl").write_text('{"a": "secret"}\n')
    (root / "study/trials/0001/train/secret.txt").write_text("a secret")
    (root / ".env").write_text(f"OPENAI_API_KEY={KEY}\n")
    (root / "model/weights").write_text("weights")
    (root / "programs/score.py").write_text("")
    for path in (root / "model", root / "programs"):  # so that nothing but the mount keeps a job from writing
        for one in (path, *path.iterdir()):
            os.chown(one, UNPRIVILEGED, UNPRIVILEGED)
    shutil.copy(Path(sys.executable).resolve(), root / "model/setuid-python")
    (root / "model/setuid-python").chmod(0o4755)
    with contextlib.ExitStack() as stack:
        keyholder = subprocess.Popen(["sleep", "600"], env={"OPENAI_API_KEY": KEY})
        stack.callback(keyholder.wait)
        stack.callback(keyholder.kill)
        services = stack.enter_context(listening(root))
        engine = os.environ.get("DOCKER_HOST", "").removeprefix("unix://") or "/var/run/docker.sock"
        yield Laboratory(
            root,
            services
            | {
                "journal": str(root / "study/journal.jsonl"),
                "other": str(root / "study/trials/0001/train/secret.txt"),
                "workspace": str(root / "study/trials/0002/train"),
                "model": str(root / "model"),
                "programs": str(root / "programs"),
                "key": KEY[::-1],
                "anywhere": str(root),
                "engine": engine,
                "process": keyholder.pid,
                "pause": 0.0,
                "machine": ["127.0.0.1", services["tcp"]],
                "metadata": ["127.0.0.1", services["tcp"]],
            },
        )


@contextlib.contextmanager
def listening(root: Path) -> Iterator[dict[str, Any]]:
    """Services on the host's loopback and in its file system that greet whoever comes."""
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        named, abstract = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        path = stack.enter_context(contextlib.closing(_short_socket(named)))
        name = f"ftloop-test-{os.getpid()}"
        abstract.bind("\0" + name)
        for listener in (named, abstract):
            listener.listen()
        for listener in (tcp, named, abstract):
            threading.Thread(target=_greet, args=(listener,), daemon=True).start()
        threading.Thread(target=_answer, args=(udp,), daemon=True).start()
        yield {"tcp": tcp.getsockname()[1], "udp": udp.getsockname()[1], "unix": path.name, "abstract": name}


class _short_socket:  # noqa: N801 - used like a function
    """Binds below /tmp, because a socket's path may have about 100 bytes; removed when closed."""

    def __init__(self, listener: socket.socket) -> None:
        self.name = f"/tmp/ftloop-test-{os.getpid()}.sock"
        listener.bind(self.name)

    def close(self) -> None:
        Path(self.name).unlink()


def _greet(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.sendall(b"welcome")
            connection.close()


def _answer(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            _, address = server.recvfrom(100)
            server.sendto(b"192.0.2.7", address)


def outside(row: Row, lab: Laboratory, image: str) -> str:
    """What the attempt prints without the lock."""
    argv = ["-I", "-S", "-u", "-c", CODE, row.attempt, json.dumps(lab.facts)]
    if row.control == "host":
        environment = {"OPENAI_API_KEY": KEY, "PATH": os.environ["PATH"]}
        run = subprocess.run([sys.executable, *argv], env=environment, capture_output=True, text=True, timeout=60)
        return run.stdout + run.stderr[-2000:]
    rights: dict[str, Any] = {"user": "0:0", "tmpfs": {"/tmp": ""}}
    if row.control == "mighty":
        rights |= {"cap_add": ["ALL"], "security_opt": ["seccomp=unconfined", "apparmor=unconfined"]}
        rights["cap_drop"] = ["SYS_RESOURCE"]  # which not every machine has to give
    if row.control == "user":
        rights["user"] = "1000:1000"
    volumes = {mount.path: {"bind": mount.path, "mode": "rw" if mount.writable else "ro"} for mount in lab.mounts}
    client = connect()
    output: bytes = client.containers.run(
        image, ["python", *argv], volumes=volumes, network_mode="none", mem_limit="1g", pids_limit=1024, remove=True,
        stderr=True, **rights,
    )  # fmt: skip
    client.close()
    return output.decode()


def inside(row: Row, lab: Laboratory, image: str) -> Outcome:
    """What becomes of a job that makes the attempt. Only here do other machines have their own addresses."""
    facts = lab.facts | {
        "anywhere": "/",
        "pause": 0.1,
        "machine": ["192.0.2.1", 80],
        "metadata": ["169.254.169.254", 80],
    }
    job = Job(
        name=row.attempt,
        environment="train",
        argv=("python", "-I", "-S", "-u", "-c", CODE, row.attempt, json.dumps(facts)),
        cwd=str(lab.workspace),
        log=str(lab.workspace / "train.log"),
        deadline=60.0,
        mounts=lab.mounts,
        untrusted=True,
    )
    client = connect()
    try:
        return DockerRunner(client, {"train": image}, grace=1.0, limits=SMALL).run(job)
    finally:
        client.close()


@pytest.mark.parametrize("row", ROWS, ids=[row.attempt for row in ROWS])
def test_an_attempt_succeeds_outside_and_fails_inside(
    row: Row, lab: Laboratory, train_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    lab.empty_workspace()
    control = outside(row, lab, train_image)
    if "Function not implemented" in control:
        pytest.skip("this kernel has no such function")
    assert "ESCAPED:" in control, "without the lock it can be done"
    lab.empty_workspace()
    before = lab.fingerprint()

    outcome = inside(row, lab, train_image)

    assert "ESCAPED:" not in outcome.tail, outcome
    assert outcome.kind == row.kind, outcome
    assert re.search(row.said, outcome.reason + outcome.tail), outcome
    assert outcome.reason
    assert lab.fingerprint() == before, "study, model and programs are as they were"
    client = connect()  # the engine answers
    assert client.containers.list(all=True, filters={"label": OWNER_LABEL}) == []
    client.close()
    assert subprocess.run(["ps", "-p", str(lab.facts["process"])], capture_output=True).returncode == 0


def test_every_attempt_has_a_row() -> None:
    written = set(re.findall(r"^def (\w+)\(lab: Lab\)", CODE, re.MULTILINE))
    assert written == {row.attempt for row in ROWS}
    assert len(ROWS) >= 25
