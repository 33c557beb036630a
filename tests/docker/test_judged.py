"""OpenCompass in the real bench image: no network, a read-only system, and its judge behind a mounted socket."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient

from agent.run import EnvironmentName
from agent.run.containers import JOB_LABEL, DockerRunner
from agent.run.environments import Environments
from scenarios.finetune import asking
from scenarios.finetune.asking import PREDICTIONS, Asked
from scenarios.finetune.score_cache import GREEDY, load_questions
from tests.docker.test_trial import Witness, witness
from tests.end_to_end.test_judges import KEY, QUESTIONS, judges, right, says
from tests.servers.openai_server import ChatServer
from tests.test_compass import REPLIES, final, lay, rows_of
from tests.test_scoring import ROOT, StageBench, ask

__all__ = ["witness"]

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(2400)]  # the images are built first


@pytest.fixture(scope="module")
def model(environments: Environments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's untrained model."""
    root = tmp_path_factory.mktemp("models")
    make = [environments.python("bench"), ROOT / "docker/train/make_demo_model.py", root / "tiny"]
    subprocess.run(make, env={"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "HOME": str(root)}, check=True)
    return root / "tiny"


@pytest.fixture
def bench(engine_client: DockerClient, real_images: dict[EnvironmentName, str], tmp_path: Path) -> StageBench:
    """A stage whose jobs run in the real bench image."""
    (tmp_path / "stage").mkdir()
    return StageBench(tmp_path / "stage", DockerRunner(engine_client, {"bench": real_images["bench"]}))


def test_a_judged_score_in_a_container_without_a_network(
    bench: StageBench, model: Path, witness: Witness, tmp_path: Path
) -> None:
    benchmark = lay(tmp_path, "aime25", QUESTIONS)
    with ChatServer(says("A", "B"), key=KEY) as server:
        score = ask(
            bench, tmp_path, benchmark, model=model, limit=6, timeout=600.0, judges=judges(server.url, tmp_path)
        )
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
        told = {item.id: item.row["answer"] for item in benchmark.halves.take("search", 6)}
        assert {str(int(right(request))) for request in server.requests} == {"0", "1"}
    assert (score.n, score.unscored) == (6, 0)
    for question in load_questions(score.questions):
        assert question.score == float(int(told[question.id]) % 3 > 0)
    assert len((bench.directory / "judge.jsonl").read_text().splitlines()) == 6

    (job,) = bench.jobs
    (container,) = (one for one in witness.seen if one["Config"]["Labels"][JOB_LABEL] == job.name)
    assert container["HostConfig"]["NetworkMode"] == "none"
    assert container["HostConfig"]["ReadonlyRootfs"] is True
    assert KEY not in str(container), "neither in its environment nor in its command"
    writable = [mount["Source"] for mount in container["Mounts"] if mount["RW"] and mount["Type"] == "bind"]
    assert writable == [job.cwd]
    for mount in job.mounts:
        path = Path(mount.path)
        for file in (path, *path.rglob("*")):
            assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("name", ["gsm8k", "math", "mmlu"])
def test_extraction_and_evaluators_in_a_container(bench: StageBench, model: Path, tmp_path: Path, name: str) -> None:
    """Of answers that were planted, so that each has the score that it deserves."""
    benchmark = lay(tmp_path, name, rows_of(name), rows_of(name, 15) if name == "mmlu" else ())
    items = benchmark.halves.take("search", 4)
    correct, _ = REPLIES[name]
    replies = [correct(final(item.row)) if number % 2 else "I do not know." for number, item in enumerate(items)]
    planted: list[dict[str, Any]] = [
        {"id": item.id, "sample": 0, "prompt": "p", "response": reply}
        for item, reply in zip(items, replies, strict=True)
    ]
    kept = tmp_path / PREDICTIONS
    kept.write_text("".join(json.dumps(line) + "\n" for line in planted))
    asked = Asked(
        model=model,
        checkpoint=None,
        benchmark=benchmark,
        items=items,
        fewshot=0,
        sampling=GREEDY,
        device="cpu",
        timeout=600.0,
        kept=kept,
    )
    stage = bench.directory / name
    outcome = bench.run(asking.job(bench, stage, asked))
    assert outcome.kind == "ok", outcome
    found = [json.loads(line) for line in (stage / "output/questions.jsonl").read_text().splitlines()]
    assert [(one["score"], one["formatted"]) for one in found] == [(0.0, False), (1.0, True)] * 2
