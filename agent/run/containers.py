"""Runs jobs in locked-down containers of a Docker engine.

A job's container has no network, no capabilities, a read-only system, an unprivileged user, and sees of the host only
the job's mounts, at the paths that they have on the host.
"""

from __future__ import annotations

import contextlib
import copy
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from agent.errors import MachineError
from agent.run import EnvironmentName, Job, Outcome, Say, Watch, logs, owner
from agent.run.image_locks import Uses, alone
from agent.run.images import build, is_there, remove, tag_of
from agent.run.lock import JOB_LABEL as JOB_LABEL
from agent.run.lock import OWNER_LABEL as OWNER_LABEL
from agent.run.lock import Limits, container_arguments, job_user, weaknesses
from agent.run.mounts import hand_over
from agent.run.outcomes import Clock, Stop

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_DEFAULT_HOST = "unix:///var/run/docker.sock"
_REMOVE_TRIES = 5
_REMOVE_PATIENCE = 20.0
_LONGEST_LINE = 1 << 16
_HINTS = (
    ("No such image", "the image was removed: run the same command again, and it is built anew"),
    ("could not select device driver", "install the NVIDIA Container Toolkit on the engine, or set FT_GPUS=none"),
    ("no space left on device", "free some space where the engine keeps its data (`docker system df`)"),
    ("bind source path does not exist", "the engine must run on this machine, and see its files"),
)


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
        limits: What one job may use.
        gpus: FT_GPUS: the GPUs that jobs get; None for those of CUDA_VISIBLE_DEVICES, or all.
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
        limits: Limits | None = None,
        gpus: str | None = None,
    ) -> None:
        self._client = client
        self._images = dict(images or {})
        self._build_arguments = dict(build_arguments or {})
        self._build_network = build_network
        self._grace = grace
        self._limits = limits or Limits()
        self._gpus = gpus
        self._update: str | None = None
        self._uses = Uses()
        self._engine: Mapping[str, Any] | None = None

    def ready(self, environment: EnvironmentName, say: Say) -> None:
        """Build the environment's image unless it is there; MachineError if it cannot.

        From then on no other study removes it, until this process ends or gives its images back.
        """
        self._uses.share(self.environment_image(environment))
        if environment in self._images:
            if not is_there(self._client, self._images[environment]):
                raise MachineError(f"the image {self._images[environment]} is not there", "build or load it first")
        elif not is_there(self._client, self.environment_image(environment)):
            build(self._client, environment, self._build_arguments, self._build_network, say)

    def refuses(self) -> str:
        """Why code that nobody reviewed is not run; empty where this engine can hold it."""
        with _engine_trouble_raised("ask what it can enforce"):
            missing = weaknesses(self._known_engine())
        return f"this Docker engine cannot hold it: it has no {', no '.join(missing)}" if missing else ""

    def run(self, job: Job, watch: Watch | None = None) -> Outcome:
        """Run to the end. Nothing of the job outlives this call, however it ends, KeyboardInterrupt included."""
        name = f"ftloop-{re.sub(r'[^A-Za-z0-9_.-]', '-', job.name)}-{secrets.token_hex(3)}"
        clock = Clock(job, watch, self._limits.disk)
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
            code = stop = None  # an engine that shuts down ends its containers first, which is no fault of theirs
        return clock.outcome(code, stop, out_of_host_memory=out_of_memory)

    def reap(self) -> list[str]:
        """Remove the containers whose owner is dead; return their names."""
        reaped = []
        with _engine_trouble_raised("list its containers"):
            containers = self._client.api.containers(all=True, filters={"label": OWNER_LABEL})
        for container in containers:
            if owner.is_dead(container["Labels"].get(OWNER_LABEL, "")):
                self._remove(container["Id"])
                reaped.append(container["Labels"].get(JOB_LABEL, ""))
        return sorted(reaped)

    @property
    def client(self) -> DockerClient:
        """The engine."""
        return self._client

    def environment_image(self, environment: EnvironmentName) -> str:
        """The name of the image that `ready` sees to."""
        return self._images.get(environment) or tag_of(environment, self._build_arguments)

    def with_update(self, image: str) -> DockerRunner:
        """The same runner, but training jobs run in `image`, which was made from the training image."""
        self._uses.share(image)
        updated = copy.copy(self)
        updated._update = image
        return updated

    def remove_images(self) -> tuple[int, list[str]]:
        """Remove the images that its jobs run in, unless another container or another study of this user needs them.

        Returns the bytes freed, and the images that another study needs.
        """
        names = [self._update, *(self.environment_image(name) for name in get_args(EnvironmentName))]
        freed, needed = 0, []
        self._uses.release()
        for name in dict.fromkeys(filter(None, names)):
            with alone(name) as unused, _engine_trouble_raised("remove its images"):
                if unused:
                    freed += remove(self._client, [name])
                else:
                    needed.append(name)
        return freed, needed

    def _image(self, environment: EnvironmentName) -> str:
        return (environment == "train" and self._update) or self.environment_image(environment)

    def _known_engine(self) -> Mapping[str, Any]:
        if self._engine is None:
            self._engine = self._client.info()
        return self._engine

    def _create(self, job: Job, name: str) -> Container:
        uid, gid = job_user()
        hand_over(job, uid, gid)
        image = self._image(job.environment)
        with _engine_trouble_raised(f"make a container of {image} for {job.name}"):
            engine = self._known_engine()
            if job.untrusted and (missing := weaknesses(engine)):
                raise MachineError(
                    f"this Docker engine cannot hold code that nobody reviewed: it has no {', no '.join(missing)}",
                    "use an engine with cgroups and seccomp (not a rootless one on cgroup v1)",
                )
            arguments = container_arguments(
                job,
                image,
                user=f"{uid}:{gid}",
                owner=owner.this_process(),
                engine=engine,
                limits=self._limits,
                gpus=self._gpus,
                visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
            )
            return self._client.containers.create(**arguments, name=name)

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
        started = time.monotonic()
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
                if time.monotonic() - started > _REMOVE_PATIENCE:  # it hangs rather than refuses
                    break
            time.sleep(0.2 * (attempt + 1))
        if problem:
            raise MachineError(
                f"the container {name} cannot be removed: {problem}", f"remove it by hand: docker rm -f {name}"
            )
        return False


def _stream_log(container: Container, path: Path) -> threading.Thread:
    """Copy the container's output to `path` from now on, in a thread that nobody has to wait for."""
    stream = container.attach(stream=True, demux=True, stdout=True, stderr=True)
    descriptor = logs.create(path)

    def copy() -> None:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            for text in _whole_lines(stream):
                with contextlib.suppress(OSError):  # a full disk; a job whose output nobody takes would hang
                    file.write(text)

    thread = threading.Thread(target=copy, name=f"log of {container.name}", daemon=True)
    thread.start()
    return thread


def _whole_lines(stream: Iterable[tuple[bytes | None, bytes | None]]) -> Iterator[bytes]:
    """Two streams joined without breaking a line of the one by a line of the other."""
    held = [b"", b""]
    with _engine_trouble_ignored():
        for chunks in stream:
            for index, chunk in enumerate(chunks):
                held[index] += chunk or b""
                end = 1 + max(held[index].rfind(b"\n"), held[index].rfind(b"\r"))
                if not end and len(held[index]) > _LONGEST_LINE:
                    end = len(held[index])
                if end:
                    yield held[index][:end]
                    held[index] = held[index][end:]
    yield from filter(None, held)


_RUNNING = object()


def _await_end(container: Container) -> queue.SimpleQueue[int | None]:
    """A queue that gets the exit code once the container has ended, or None once it or its engine is gone."""
    ended: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def wait() -> None:
        code = None
        try:
            with _engine_trouble_ignored():
                code = _exit_code(container)
        finally:
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
        explanation = str(getattr(error, "explanation", None) or error)
        hint = next((hint for words, hint in _HINTS if words in explanation), "see `docker info`")
        raise MachineError(f"the Docker engine cannot {attempt}: {explanation}", hint) from None


@contextlib.contextmanager
def _engine_trouble_ignored() -> Iterator[None]:
    import docker
    import requests

    with contextlib.suppress(docker.errors.DockerException, requests.RequestException, OSError):
        yield
