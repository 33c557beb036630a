"""Runs jobs in locked-down containers of a Docker engine.

A job's container has no network, no capabilities, a read-only system, an unprivileged user, and sees of the host only
the job's mounts, at the paths that they have on the host.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from agent.errors import MachineError
from agent.run import EnvironmentName, Job, Outcome, Say, Watch, logs, owner
from agent.run.images import build, is_there, tag_of
from agent.run.outcomes import Clock, Stop

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from docker.types import DeviceRequest

OWNER_LABEL = "ftloop.owner"
JOB_LABEL = "ftloop.job"
HOME = "/home/ftloop"
UNPRIVILEGED = 1000
"""The uid and gid of a root caller's jobs."""
_DEFAULT_HOST = "unix:///var/run/docker.sock"
_REMOVE_TRIES = 5


def docker_answers() -> str | None:
    """Why no engine can be used; None if one answers. Quick, as it decides which runner is taken."""
    host = os.environ.get("DOCKER_HOST") or _DEFAULT_HOST
    if host.startswith("unix://") and not Path(host.removeprefix("unix://")).exists():
        return f"no Docker engine listens at {host}"
    try:
        connect(timeout=3.0).close()
    except MachineError as error:
        return error.message
    return None


def connect(timeout: float = 60.0) -> DockerClient:
    """A client of the engine that DOCKER_HOST names, or of the default one; MachineError if it does not answer."""
    import docker
    import requests

    host = os.environ.get("DOCKER_HOST") or _DEFAULT_HOST
    try:
        client = docker.from_env(timeout=cast(int, timeout))
        client.ping()
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise MachineError(
            f"the Docker engine at {host} does not answer: {error}",
            "start it, set DOCKER_HOST, or use --runner local",
        ) from None
    return client


class DockerRunner:
    """The runner that confines what it runs.

    Args:
        client: The engine, from `connect()`.
        images: Environment -> an image that is there already; others are built from docker/<environment>/Dockerfile.
        build_arguments: For those builds: BASE, FIND_LINKS.
        build_network: Network of those builds ("host" where the engine has no bridge).
        grace: Seconds between SIGTERM and SIGKILL.
        memory: Limit of a job, as Docker writes it ("6g").
        shm: Size of /dev/shm, which data loaders use.
        pids: Most processes and threads of a job.
    """

    name = "docker"

    def __init__(
        self,
        client: DockerClient,
        images: Mapping[EnvironmentName, str] | None = None,
        *,
        build_arguments: Mapping[str, str] | None = None,
        build_network: str | None = None,
        grace: float = 5.0,
        memory: str | None = None,
        shm: str = "1g",
        pids: int = 4096,
    ) -> None:
        self._client = client
        self._images = dict(images or {})
        self._build_arguments = dict(build_arguments or {})
        self._build_network = build_network
        self._grace = grace
        self._limits: dict[str, Any] = {"shm_size": shm, "pids_limit": pids, "mem_limit": memory}
        self._gpus: list[DeviceRequest] | None = None

    def ready(self, environment: EnvironmentName, say: Say) -> None:
        """Build the environment's image unless it is there; MachineError if it cannot."""
        if environment in self._images:
            if not is_there(self._client, self._images[environment]):
                raise MachineError(f"the image {self._images[environment]} is not there", "build or load it first")
        elif not is_there(self._client, self._image(environment)):
            build(self._client, environment, self._build_arguments, self._build_network, say)

    def run(self, job: Job, watch: Watch | None = None) -> Outcome:
        """Run to the end. Nothing of the job outlives this call, however it ends, KeyboardInterrupt included."""
        name = f"ftloop-{re.sub(r'[^A-Za-z0-9_.-]', '-', job.name)}-{secrets.token_hex(3)}"
        clock = Clock(job, watch)
        stop: Stop | None = None
        try:
            container = self._create(job, name)
            with _engine_trouble_raised(f"start {job.name}"):
                log = _stream_log(container, Path(job.log))
                container.start()
            ended = _await_end(container)
            while (code := _take(ended, clock.pause)) is _RUNNING:
                stop = clock.stop()
                if stop:
                    code = self._terminate(container, ended)
                    break
            out_of_memory = code != 0 and _killed_for_memory(container)
        finally:
            answered = self._remove(name)
        log.join(self._grace)
        if code != 0 and not answered:
            code = None  # an engine that shuts down ends its containers first, which is no fault of theirs
        return clock.outcome(code, stop, out_of_host_memory=out_of_memory)

    def reap(self) -> list[str]:
        """Remove the containers whose owner is dead; return their names."""
        reaped = []
        filters: dict[str, str | list[str] | bool] = {"label": OWNER_LABEL}
        with _engine_trouble_raised("list its containers"):
            containers = self._client.containers.list(all=True, filters=filters, ignore_removed=True)
        for container in containers:
            if owner.is_dead(container.labels.get(OWNER_LABEL, "")):
                self._remove(container.name or "")
                reaped.append(container.labels.get(JOB_LABEL, ""))
        return sorted(reaped)

    def _image(self, environment: EnvironmentName) -> str:
        return self._images.get(environment) or tag_of(environment, self._build_arguments)

    def _create(self, job: Job, name: str) -> Container:
        uid, gid = job_user()
        if os.getuid() != uid:
            for mount in job.mounts:
                if mount.writable:
                    _give(Path(mount.path), uid, gid)
        image = self._image(job.environment)
        arguments = container_arguments(job, image, f"{uid}:{gid}") | self._limits
        with _engine_trouble_raised(f"make a container of {image} for {job.name}"):
            if self._gpus is None:
                self._gpus = gpu_requests(self._client.info(), os.environ.get("CUDA_VISIBLE_DEVICES"))
            return self._client.containers.create(**arguments, name=name, device_requests=self._gpus)

    def _terminate(self, container: Container, ended: queue.SimpleQueue[int | None]) -> int | None:
        """SIGTERM, then wait for the grace; what is left then is killed by removing its container."""
        with _engine_trouble_ignored():
            container.kill("SIGTERM")
        code = _take(ended, self._grace)
        return None if code is _RUNNING else code

    def _remove(self, name: str) -> bool:
        """Kill and remove, unless it is gone already. False if the engine does not answer any more."""
        import docker
        import requests

        problem: str | None = None
        for attempt in range(_REMOVE_TRIES):
            try:
                self._client.api.remove_container(name, force=True, v=True)
                return True
            except docker.errors.NotFound:
                return True
            except docker.errors.APIError as error:  # "removal in progress", a busy file system
                problem = error.explanation
            except requests.RequestException:  # no engine; one that comes back has it reaped by the next call
                problem = None
            time.sleep(0.2 * (attempt + 1))
        if problem:
            raise MachineError(
                f"the container {name} cannot be removed: {problem}", f"remove it by hand: docker rm -f {name}"
            )
        return False


def container_arguments(job: Job, image: str, user: str) -> dict[str, Any]:
    """What every job's container is made with, whatever the engine can do; the lock is all here."""
    from docker.types import LogConfig
    from docker.types import Mount as Bind

    variables = {"HOME": HOME, "LANG": "C.UTF-8", "TMPDIR": "/tmp"} | job.variables  # noqa: S108 - the container's
    return {
        "image": image,
        "command": list(job.argv),
        "entrypoint": [],
        "working_dir": job.cwd,
        "environment": variables,
        "labels": {OWNER_LABEL: owner.this_process(), JOB_LABEL: job.name} | job.labels,
        "mounts": [Bind(mount.path, mount.path, type="bind", read_only=not mount.writable) for mount in job.mounts],
        "user": user,
        "network_mode": "none",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        # exec: compiled GPU kernels are cached and loaded there.
        "tmpfs": dict.fromkeys(("/tmp", HOME), "rw,exec,nosuid,nodev,mode=1777"),  # noqa: S108
        "init": True,  # Python as PID 1 would ignore its own signals and leave zombies
        "log_config": LogConfig(type="none"),  # the log is ours, streamed to job.log
        "use_config_proxy": False,  # proxies may hold passwords
    }


def job_user() -> tuple[int, int]:
    """uid and gid of jobs: the caller's, but never root."""
    return (UNPRIVILEGED, UNPRIVILEGED) if os.getuid() == 0 else (os.getuid(), os.getgid())


def gpu_requests(engine: Mapping[str, Any], visible: str | None) -> list[DeviceRequest]:
    """The GPUs that a job gets: what CUDA_VISIBLE_DEVICES says, by default all; none without a GPU runtime."""
    from docker.types import DeviceRequest

    if "nvidia" not in (engine.get("Runtimes") or {}) or visible in {"", "-1"}:
        return []
    if visible is None:
        return [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return [DeviceRequest(device_ids=[device.strip() for device in visible.split(",")], capabilities=[["gpu"]])]


def _stream_log(container: Container, path: Path) -> threading.Thread:
    """Copy the container's output to `path` from now on, in a thread that nobody has to wait for."""
    stream = container.attach(stream=True, stdout=True, stderr=True)
    descriptor = logs.create(path)

    def copy() -> None:
        with os.fdopen(descriptor, "wb", buffering=0) as file, _engine_trouble_ignored():
            for chunk in stream:
                file.write(chunk)

    thread = threading.Thread(target=copy, name=f"log of {container.name}", daemon=True)
    thread.start()
    return thread


_RUNNING = object()


def _await_end(container: Container) -> queue.SimpleQueue[int | None]:
    """A queue that gets the exit code once the container has ended, or None once it or its engine is gone."""
    ended: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def wait() -> None:
        code = None
        with _engine_trouble_ignored():
            code = _exit_code(container)
        ended.put(code)

    threading.Thread(target=wait, name=f"end of {container.name}", daemon=True).start()
    return ended


def _exit_code(container: Container) -> int:
    """Wait for the end, however long it takes."""
    import requests

    while True:
        try:
            return int(container.wait(timeout=60)["StatusCode"])
        except requests.RequestException:  # after 60 s this is a ConnectionError, as when the engine has died
            container.reload()  # raises if that is so


def _take(ended: queue.SimpleQueue[int | None], seconds: float) -> Any:
    """The exit code, None if it was lost, `_RUNNING` if there is none within so many seconds."""
    try:
        return ended.get(timeout=seconds)
    except queue.Empty:
        return _RUNNING


def _killed_for_memory(container: Container) -> bool:
    """What the engine says about an ended container; False where it does not answer any more."""
    with _engine_trouble_ignored():
        container.reload()
    return bool(container.attrs.get("State", {}).get("OOMKilled"))


@contextlib.contextmanager
def _engine_trouble_raised(attempt: str) -> Iterator[None]:
    import docker
    import requests

    try:
        yield
    except (docker.errors.DockerException, requests.RequestException) as error:
        explanation = getattr(error, "explanation", None) or error
        raise MachineError(
            f"the Docker engine cannot {attempt}: {explanation}",
            "see `docker info` and `docker images`; `--runner local` works without an engine",
        ) from None


@contextlib.contextmanager
def _engine_trouble_ignored() -> Iterator[None]:
    import docker
    import requests

    with contextlib.suppress(docker.errors.DockerException, requests.RequestException, OSError):
        yield


def _give(path: Path, uid: int, gid: int) -> None:
    """Make the job's user the owner of all below `path`. By descriptors: another job may be moving links about."""
    os.chown(path, uid, gid, follow_symlinks=False)
    for _, directories, files, descriptor in os.fwalk(path, follow_symlinks=False):
        for name in (*directories, *files):
            os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)
