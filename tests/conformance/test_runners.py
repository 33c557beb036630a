"""What every runner must do: one suite, run over all of them with real processes and real containers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.errors import MachineError
from agent.run import Mount, Outcome, Runner
from agent.run.containers import OWNER_LABEL, connect
from agent.run.local import LocalRunner

from .runners import GRACE, ThisPython, make_runner, python_job

# A process that looks at nothing but its own mark: it leaves its session, its group and its parent.
STRAY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-I", "-S", "-c",
            "import signal, time\\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
            "while True: open('alive', 'w').write(str(time.time())); time.sleep(0.05)"], {})
    os._exit(0)
os.wait()
while not os.path.exists("alive"): time.sleep(0.01)
"""
IGNORE_AND_SLEEP = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)"


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    patience = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < patience, "waited in vain"
        time.sleep(0.02)


def assert_dead(stray: Path) -> None:
    """The process that rewrites the file `alive` does so no more."""
    first = (stray / "alive").read_text()
    time.sleep(0.3)
    assert (stray / "alive").read_text() == first


def test_a_normal_end_is_ok_and_its_log_is_kept(runner: Runner, tmp_path: Path) -> None:
    outcome = runner.run(python_job(tmp_path, "import sys; print('out'); print('err', file=sys.stderr)"))
    assert (outcome.kind, outcome.code) == ("ok", 0), outcome
    assert "out" in outcome.tail
    assert "err" in outcome.tail
    assert sorted(Path(outcome.log).read_text().split()) == ["err", "out"]


def test_an_exit_code_is_reported(runner: Runner, tmp_path: Path) -> None:
    outcome = runner.run(python_job(tmp_path, "print('the reason'); raise SystemExit(7)"))
    assert (outcome.kind, outcome.code) == ("exit", 7)
    assert "7" in outcome.reason
    assert outcome.tail == "the reason"


def test_a_missing_program_is_an_exit_with_its_name_in_the_tail(runner: Runner, tmp_path: Path) -> None:
    outcome = runner.run(python_job(tmp_path, "", argv=("no-such-program", "x")))
    assert (outcome.kind, outcome.code) == ("exit", 127)
    assert "no-such-program" in outcome.tail


def test_the_deadline_holds_for_a_job_that_prints_nothing_and_ignores_sigterm(runner: Runner, tmp_path: Path) -> None:
    started = time.monotonic()
    outcome = runner.run(python_job(tmp_path, IGNORE_AND_SLEEP, deadline=1.0))
    assert outcome.kind == "timeout", outcome
    assert 1.0 + GRACE - 0.1 <= time.monotonic() - started < 1.0 + GRACE + 4.0
    assert "1 s" in outcome.reason


def test_a_job_that_obeys_sigterm_is_not_kept_waiting_for_the_grace(runner: Runner, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(0)))\n"
        "print('up'); time.sleep(600)"
    )
    outcome = runner.run(python_job(tmp_path, code, deadline=2.0))
    assert outcome.kind == "timeout"
    assert "saved" in outcome.tail


@pytest.mark.parametrize("after", ["", "time.sleep(600)"], ids=["normal end", "timeout"])
def test_a_process_that_left_its_session_does_not_survive(runner: Runner, tmp_path: Path, after: str) -> None:
    outcome = runner.run(python_job(tmp_path, STRAY + after, deadline=3.0))
    assert outcome.kind == ("timeout" if after else "ok"), outcome
    assert_dead(tmp_path)


def test_the_watch_stops_a_job_with_its_reason(runner: Runner, tmp_path: Path) -> None:
    looks: list[float] = []

    def watch() -> str | None:
        looks.append(time.monotonic())
        return "the disk is full" if len(looks) == 3 else None

    outcome = runner.run(python_job(tmp_path, "import time; time.sleep(600)"), watch)
    assert (outcome.kind, outcome.reason) == ("stopped", "the disk is full")
    assert 0.3 < looks[-1] - looks[-2] < 1.5


def test_what_the_watch_raises_ends_the_job_and_is_raised(runner: Runner, tmp_path: Path) -> None:
    def watch() -> str | None:
        if (tmp_path / "alive").exists():
            raise LookupError("the watch's own")
        return None

    with pytest.raises(LookupError, match="own"):
        runner.run(python_job(tmp_path, STRAY + "time.sleep(600)"), watch)
    assert_dead(tmp_path)


def test_ctrl_c_ends_the_job_and_is_raised(runner: Runner, tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_for((tmp_path / "alive").exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        runner.run(python_job(tmp_path, STRAY + "time.sleep(600)"))
    thread.join()
    assert_dead(tmp_path)


def test_the_log_is_on_disk_while_the_job_runs(runner: Runner, tmp_path: Path) -> None:
    seen: list[str] = []

    def watch() -> str | None:
        seen.append((tmp_path / "job.log").read_text())
        return "seen" if "step 1" in seen[-1] else None

    outcome = runner.run(python_job(tmp_path, "print('step 1'); import time; time.sleep(600)"), watch)
    assert outcome.reason == "seen"


def test_nothing_of_the_environment_is_inherited(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "NVIDIA_API_KEY", "CUDA_VISIBLE_DEVICES_KEY"):
        monkeypatch.setenv(name, "a-secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    code = "import os; print(sorted(os.environ)); assert 'a-secret' not in os.environ.values()"
    outcome = runner.run(python_job(tmp_path, code, variables={"GIVEN": "1"}))
    assert outcome.kind == "ok", outcome.tail
    names = set(eval(outcome.tail))
    assert names >= {"GIVEN", "HOME", "LANG", "PATH"}
    allowed = {"GIVEN", "HOME", "LANG", "LC_CTYPE", "PATH", "TMPDIR", "FTLOOP_JOB"}
    gpus = {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
    image_only = {"BAKED", "HOSTNAME"}
    assert names <= allowed | gpus | image_only


def test_a_local_job_sees_the_gpus_that_the_user_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"CUDA_VISIBLE_DEVICES": "1", "NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute"}
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    outcome = make_runner("local").run(python_job(tmp_path, "import os; print(dict(os.environ))"))
    assert eval(outcome.tail).items() >= chosen.items()


def test_home_is_writable_and_not_the_users(runner: Runner, tmp_path: Path) -> None:
    code = "import os; open(os.path.expanduser('~/x'), 'w'); print(os.environ['HOME'])"
    outcome = runner.run(python_job(tmp_path, code))
    assert outcome.kind == "ok", outcome.tail
    assert outcome.tail != str(Path.home())


def test_a_job_writes_into_its_working_directory(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "work" / "made-before").mkdir(parents=True)
    outcome = runner.run(python_job(tmp_path / "work", "open('made-before/out', 'w').write('x')"))
    assert outcome.kind == "ok", outcome.tail
    assert (tmp_path / "work/made-before/out").read_text() == "x"


@pytest.mark.parametrize(
    "message",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        "DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_running_out_of_memory_is_recognised(runner: Runner, tmp_path: Path, message: str) -> None:
    outcome = runner.run(python_job(tmp_path, f'import sys; sys.exit("{message}")'))
    assert (outcome.kind, outcome.code) == ("oom", 1)
    assert runner.run(python_job(tmp_path, f'print("{message}")')).kind == "ok"


@pytest.mark.parametrize("pause", [0.1, 0.0], ids=["slowly", "at once"])
def test_a_job_that_writes_too_much_is_stopped_or_found_out(
    kind: str, image_name: str, tmp_path: Path, pause: float
) -> None:
    files = 600 if pause else 10
    code = (
        "import time\n"
        f"for number in range({files}):\n"
        "    with open(f'part-{number}', 'wb') as file: file.write(bytes(4_000_000))\n"
        f"    time.sleep({pause})"
    )
    outcome = make_runner(kind, image_name, disk=20_000_000).run(python_job(tmp_path, code))
    assert outcome.kind == "disk", outcome
    assert outcome.reason == "it wrote more than 0.02 GB (FT_TRIAL_DISK)"
    assert outcome.seconds < 15


def test_a_full_disk_is_no_fault_of_the_job(runner: Runner, tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("a disk that can be filled needs the right to mount one")
    try:
        outcome = runner.run(python_job(tmp_path, "open('big', 'wb').write(bytes(64_000_000))"))
        assert (outcome.kind, outcome.code) == ("full", 1), outcome
        assert f"no space is left on the disk of {tmp_path}" in outcome.reason
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_directories_too_deep_to_be_deleted_are_deleted(runner: Runner, tmp_path: Path) -> None:
    code = "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')"
    outcome = runner.run(python_job(tmp_path, code))
    assert (outcome.kind, outcome.reason) == ("disk", "it nested directories more than 64 deep")
    assert not (tmp_path / "d").exists()


def test_code_that_nobody_reviewed_needs_a_container(kind: str, runner: Runner, tmp_path: Path) -> None:
    job = python_job(tmp_path, "open('ran', 'w')", untrusted=True)
    if kind == "local":
        with pytest.raises(MachineError, match="nothing confines it") as caught:
            runner.run(job)
        assert "--unsafe-local" in caught.value.hint
        assert "--runner docker" in caught.value.hint
        assert not (tmp_path / "ran").exists()
        assert LocalRunner(ThisPython(), unsafe=True).run(job).kind == "ok"
    else:
        assert runner.run(job).kind == "ok"
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGKILL, "killed"), (signal.SIGSEGV, "exit")])
def test_a_signal_is_named(runner: Runner, tmp_path: Path, number: signal.Signals, expected: str) -> None:
    outcome = runner.run(python_job(tmp_path, f"import os; os.kill(os.getpid(), {int(number)})"))
    assert (outcome.kind, outcome.code) == (expected, 128 + number), outcome
    assert number.name in outcome.reason


def test_two_jobs_at_once(runner: Runner, tmp_path: Path) -> None:
    """Each waits for the other's first line, so that neither can end unless both run."""
    code = (
        "import os, sys, time\n"
        "open('{shared}/{me}', 'w')\n"
        "while not os.path.exists('{shared}/{other}'): time.sleep(0.02)\n"
        "print('met', '{other}')"
    )
    shared = tmp_path / "shared"
    shared.mkdir()
    both = Mount(str(shared), writable=True)

    def run(me: str, other: str) -> Outcome:
        directory = tmp_path / me
        text = code.format(shared=shared, me=me, other=other)
        return runner.run(python_job(directory, text, name=me, mounts=(Mount(str(directory), writable=True), both)))

    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(run, ["one", "two"], ["two", "one"]))
    assert [outcome.tail for outcome in outcomes] == ["met two", "met one"]


def test_a_killed_owner_leaves_nothing_behind_once_reaped(
    runner: Runner, kind: str, image_name: str, tmp_path: Path
) -> None:
    argv = [
        sys.executable,
        "-m",
        "tests.conformance.runners",
        kind,
        image_name,
        str(tmp_path),
        STRAY + "time.sleep(600)",
    ]
    owner = subprocess.Popen(argv, cwd=Path(__file__).parents[2])
    wait_for((tmp_path / "alive").exists)
    assert runner.reap() == [], "its owner lives"
    owner.kill()
    owner.wait()
    if kind == "local":
        time.sleep(GRACE + 1.0)
        assert_dead(tmp_path)  # the supervisor saw to it, before anybody reaps
        assert runner.reap() == []
    else:
        assert runner.reap() == ["owned"]
    assert_dead(tmp_path)


def test_reaping_spares_the_jobs_of_the_living(runner: Runner, tmp_path: Path) -> None:
    reaped: list[str] = []

    def watch() -> str | None:
        reaped.extend(runner.reap())
        return "reaped" if (tmp_path / "job.log").read_text() else None

    outcome = runner.run(python_job(tmp_path, "import time; time.sleep(0.7); print('alive')"), watch)
    assert reaped == []
    assert "alive" in outcome.tail


class TestLocal:
    @pytest.fixture
    def kind(self) -> str:
        return "local"

    def test_a_job_whose_supervisor_was_killed_is_lost_and_ended(self, runner: Runner, tmp_path: Path) -> None:
        job = python_job(tmp_path, "import os, time; open('pid', 'w').write(f'{os.getppid()} {os.getpid()}')\n" + STRAY)
        argv = (*job.argv[:-1], job.argv[-1].replace("{})", "dict(os.environ))") + "time.sleep(600)")

        def watch() -> str | None:
            if (tmp_path / "alive").exists():
                os.kill(int((tmp_path / "pid").read_text().split()[0]), signal.SIGKILL)
            return None

        outcome = runner.run(python_job(tmp_path, "", argv=argv), watch)
        assert (outcome.kind, outcome.code) == ("lost", None)
        assert_dead(tmp_path)

    def test_what_a_dead_owner_and_a_dead_supervisor_left_is_reaped(self, runner: Runner, tmp_path: Path) -> None:
        """The supervisor normally is faster; here a marked process is all that is left."""
        dead = subprocess.run(
            [sys.executable, "-c", "from agent.run.owner import this_process; print(this_process())"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        ).stdout.strip()
        code = (
            "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], env={"FTLOOP_JOB": f"{dead}/old-job/abcd"}, stdout=subprocess.PIPE
        ) as left:
            assert left.stdout is not None
            left.stdout.readline()
            threading.Thread(target=left.wait, daemon=True).start()
            assert runner.reap() == ["old-job"]
            assert left.wait() == -signal.SIGKILL

    @pytest.mark.parametrize(("gpus", "expected"), [("1,3", "1,3 PCI_BUS_ID"), ("none", " PCI_BUS_ID"), (None, "5 no")])
    def test_a_job_sees_the_gpus_that_it_is_given(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: str | None, expected: str
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
        code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ.get('CUDA_DEVICE_ORDER', 'no'))"
        job = python_job(tmp_path, code)
        LocalRunner(ThisPython(), gpus=gpus).run(job)
        assert Path(job.log).read_text() == expected + "\n"

    def test_a_job_costs_little(self, runner: Runner, tmp_path: Path) -> None:
        job = python_job(tmp_path, "", argv=("true",))
        assert min(runner.run(job).seconds for _ in range(5)) < 0.15


@pytest.mark.docker
class TestDocker:
    @pytest.fixture
    def kind(self) -> str:
        return "docker"

    def test_a_read_only_mount_cannot_be_written(self, runner: Runner, tmp_path: Path) -> None:
        data = tmp_path / "data"
        data.mkdir(mode=0o777)
        (data / "rows").write_text("42")
        code = f"print(open('{data}/rows').read()); open('{data}/rows', 'w')"
        mounts = (Mount(str(tmp_path / "work"), writable=True), Mount(str(data)))
        outcome = runner.run(python_job(tmp_path / "work", code, mounts=mounts))
        assert outcome.kind == "exit"
        assert "42" in outcome.tail
        assert "Read-only file system" in outcome.tail
        assert (data / "rows").read_text() == "42"

    def test_the_lock(self, runner: Runner, tmp_path: Path) -> None:
        """Unprivileged, without capabilities, network or a writable system; what it is not given it cannot see."""
        (tmp_path / "secret").write_text("")
        code = (
            "import os\n"
            "status = dict(line.split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)\n"
            "print(os.getuid(), int(status['CapEff'], 16), int(status['CapBnd'], 16), status['NoNewPrivs'].strip())\n"
            "print(sorted(os.listdir('/sys/class/net')))\n"
            f"print(os.path.exists('{tmp_path}/secret'))\n"
            "open('/usr/x', 'w')"
        )
        outcome = runner.run(python_job(tmp_path / "work", code))
        uid = os.getuid() or 1000
        assert {f"{uid} 0 0 1", "['lo']", "False"} <= set(outcome.tail.splitlines())
        assert "Read-only file system: '/usr/x'" in outcome.tail

    def test_a_job_above_its_memory_limit_is_out_of_memory(self, image: str, tmp_path: Path) -> None:
        from agent.run.containers import DockerRunner
        from agent.run.lock import Limits

        limited = DockerRunner(connect(), {"train": image}, limits=Limits(memory=64 << 20))
        outcome = limited.run(python_job(tmp_path, "x = bytearray(500_000_000)"))
        assert (outcome.kind, outcome.code) == ("oom", 137), outcome

    def test_a_container_that_cannot_start_is_removed(self, runner: Runner, tmp_path: Path) -> None:
        job = python_job(tmp_path, "", mounts=(Mount(str(tmp_path), writable=True), Mount("/no/such/place")))
        with pytest.raises(MachineError, match="/no/such/place"):
            runner.run(job)
        assert our_containers() == []

    def test_a_missing_image_is_a_broken_machine(self, tmp_path: Path, image: str) -> None:
        from agent.run.containers import DockerRunner

        runner = DockerRunner(connect(), {"train": "no-such-image:1"})
        with pytest.raises(MachineError, match="no-such-image:1"):
            runner.ready("train", print)
        with pytest.raises(MachineError, match="no-such-image:1"):
            runner.run(python_job(tmp_path, ""))

    def test_a_gpu_that_the_engine_cannot_give_is_a_broken_machine(self, tmp_path: Path, image: str) -> None:
        from agent.run.containers import DockerRunner

        if "nvidia" in connect().info()["Runtimes"]:
            pytest.skip("this engine has a GPU runtime")
        runner = DockerRunner(connect(), {"train": image}, gpus="0")
        with pytest.raises(MachineError, match="could not select device driver") as caught:
            runner.run(python_job(tmp_path, ""))
        assert "FT_GPUS=none" in caught.value.hint
        assert our_containers() == []

    def test_lines_of_stdout_and_stderr_do_not_break_each_other(self, runner: Runner, tmp_path: Path) -> None:
        code = (
            "import os\n"
            "for _ in range(300):\n"
            "    os.write(1, b'out'); os.write(2, b'er'); os.write(1, b'put\\n'); os.write(2, b'ror\\n')"
        )
        log = Path(runner.run(python_job(tmp_path, code)).log).read_text()
        assert sorted(log.split()) == ["error"] * 300 + ["output"] * 300

    def test_a_foreign_container_is_not_reaped(self, runner: Runner, image: str) -> None:
        client = connect()
        foreign = [
            client.containers.create(image, ["python"], labels=labels)
            for labels in ({"other": "1"}, {OWNER_LABEL: "elsewhere/0/0/1/1"}, {OWNER_LABEL: "gibberish"})
        ]
        try:
            assert runner.reap() == []
            for container in foreign:
                container.reload()
        finally:
            for container in foreign:
                container.remove(force=True)

    def test_no_container_is_left(self, runner: Runner, tmp_path: Path) -> None:
        runner.run(python_job(tmp_path, IGNORE_AND_SLEEP, deadline=0.5))
        runner.run(python_job(tmp_path, ""))
        assert our_containers() == []

    def test_a_container_that_somebody_removes_is_lost(self, runner: Runner, tmp_path: Path) -> None:
        def watch() -> str | None:
            for container in connect().containers.list(filters={"label": OWNER_LABEL}):
                container.remove(force=True)
            return None

        job = python_job(tmp_path, "import time; time.sleep(600)")
        assert runner.run(job, watch).kind in {"killed", "lost"}


def our_containers() -> list[str]:
    found = connect().containers.list(all=True, filters={"label": OWNER_LABEL})
    return [container.name or "" for container in found]
