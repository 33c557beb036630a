"""Downloads with the real huggingface_hub client from a small hub over HTTP that can break them.

huggingface_hub reads HF_ENDPOINT when it is imported, so every fetch here is a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import UsageError
from agent.hub import RECORD, fetch, find
from tests.servers.hub_server import Fault, Hub, Repository

DATA = "HuggingFaceH4/aime_2024"
MODEL = "Qwen/tiny"
PARTIAL = Path("datasets/.partial/HuggingFaceH4--aime_2024/files")
SCRIPT = """
import json, sys
from pathlib import Path
from agent.errors import FtloopError
from agent.hub import fetch
said = []
try:
    found = fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]), said.append)
    print(json.dumps({"path": str(found.path), "revision": found.revision, "source": found.source, "said": said}))
except FtloopError as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error), "said": said}))
"""


def rows(count: int, seed: int = 0) -> bytes:
    words = random.Random(seed)
    return b"".join(
        json.dumps({"problem": words.randbytes(40).hex(), "answer": str(n)}).encode() + b"\n" for n in range(count)
    )


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.datasets[DATA] = Repository(
            {"README.md": b"# AIME\n", "train.jsonl": rows(100), "data/more.parquet": rows(3000, 1)},
            lfs=frozenset({"data/more.parquet"}),
        )
        running.models[MODEL] = Repository(
            {
                "config.json": b"{}",
                "tokenizer.json": b'{"version": "1.0"}',
                "model.safetensors": rows(5000, 2),
                "pytorch_model.bin": b"a pickle",
                "modeling_tiny.py": b"raise SystemExit('ran')",
                "onnx/config.json": b"{}",
                ".gitattributes": b"*.safetensors filter=lfs",
            },
            lfs=frozenset({"model.safetensors", "pytorch_model.bin"}),
        )
        yield running


def start(hub: Hub | str, kind: str, name: str, root: Path, **variables: str) -> subprocess.Popen[str]:
    url = hub if isinstance(hub, str) else hub.url
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(root.parent / "home"),
        "HF_ENDPOINT": url,
        "HF_HUB_DOWNLOAD_TIMEOUT": "3",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, kind, name, str(root)],
        env=environment,
        cwd=Path(__file__).resolve().parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fetched(hub: Hub | str, kind: str, name: str, root: Path, **variables: str) -> dict[str, Any]:
    with start(hub, kind, name, root, **variables) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == "", "nothing may write over the terminal"
    answer: dict[str, Any] = json.loads(out)
    return answer


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != RECORD
    }


def test_a_data_set_is_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    answer = fetched(hub, "dataset", DATA, tmp_path / "w")
    repository = hub.datasets[DATA]
    target = tmp_path / "w" / "datasets" / DATA
    assert answer["source"] == "hub"
    assert answer["revision"] == repository.revision
    assert Path(answer["path"]) == target
    assert contents(target) == repository.files
    assert any("downloading the data set" in line and "3 files" in line for line in answer["said"])

    record = json.loads((target / RECORD).read_text())
    assert record["revision"] == repository.revision
    assert {file["path"]: file["sha256"] for file in record["files"]} == {
        path: hashlib.sha256(content).hexdigest() for path, content in repository.files.items()
    }

    before = len(hub.requests)
    again = fetched(hub, "dataset", DATA, tmp_path / "w")
    assert again["source"] == "disk"
    assert again["revision"] == repository.revision
    assert len(hub.requests) == before, "what is on disk is used without asking the hub"


def test_of_a_model_only_safetensors_and_text_are_taken(hub: Hub, tmp_path: Path) -> None:
    answer = fetched(hub, "model", MODEL, tmp_path / "w")
    assert Path(answer["path"]) == tmp_path / "w" / "models" / MODEL
    assert set(contents(Path(answer["path"]))) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert hub.downloads(".bin") == hub.downloads(".py") == 0


def test_a_name_without_an_owner(hub: Hub, tmp_path: Path) -> None:
    hub.datasets["squad"] = Repository({"a.json": b"[]"})
    assert fetched(hub, "dataset", "squad", tmp_path / "w")["path"] == str(tmp_path / "w" / "datasets" / "squad")


@pytest.mark.parametrize("kind", ["reset", "close"])
def test_a_connection_that_breaks_in_mid_file_is_resumed(hub: Hub, tmp_path: Path, kind: Any) -> None:
    hub.faults.append(Fault("more.parquet", kind, after=100_000))
    answer = fetched(hub, "dataset", DATA, tmp_path / "w")
    assert contents(Path(answer["path"])) == hub.datasets[DATA].files
    assert hub.downloads("more.parquet") == 2


def test_a_download_that_fails_for_good_is_continued_by_the_next_call(hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault("more.parquet", "status", times=3, status=503))
    answer = fetched(hub, "dataset", DATA, tmp_path / "w")
    assert answer["error"] == "MachineError"
    assert "could not be downloaded" in answer["text"]
    assert "run the same command" in answer["text"]
    assert find("dataset", DATA, tmp_path / "w") is None, "half a data set must not look like one"

    answer = fetched(hub, "dataset", DATA, tmp_path / "w")
    assert contents(Path(answer["path"])) == hub.datasets[DATA].files
    assert hub.downloads("train.jsonl") == 1, "finished files are kept"


def test_a_short_hiccup_is_waited_out(hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault(f"/api/datasets/{DATA}", "status", status=502))
    answer = fetched(hub, "dataset", DATA, tmp_path / "w")
    assert answer["source"] == "hub"
    assert any("trying again" in line for line in answer["said"])


def test_kill_9_of_the_downloader_and_then_again(hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault("more.parquet", "stall", after=50_000))
    process = start(hub, "dataset", DATA, tmp_path / "w", HF_HUB_DOWNLOAD_TIMEOUT="60")
    partial = tmp_path / "w" / PARTIAL
    with process:
        assert hub.stalled.wait(30)
        wait_for((partial / ".cache/huggingface/download/train.jsonl.metadata").is_file)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert list(partial.rglob("*.incomplete")), "the kill came in mid-file"
    assert find("dataset", DATA, tmp_path / "w") is None

    answer = fetched(hub, "dataset", DATA, tmp_path / "w")
    assert contents(Path(answer["path"])) == hub.datasets[DATA].files
    assert hub.downloads("train.jsonl") == 1
    assert not partial.exists()
    assert not list((tmp_path / "w").rglob("*.incomplete"))


@pytest.mark.parametrize("file", ["more.parquet", "train.jsonl"])
def test_wrong_bytes_are_noticed_and_fetched_again(hub: Hub, tmp_path: Path, file: str) -> None:
    hub.faults.append(Fault(file, "corrupt", after=1000))
    answer = fetched(hub, "dataset", DATA, tmp_path / "w")
    assert contents(Path(answer["path"])) == hub.datasets[DATA].files
    assert hub.downloads(file) == 2
    assert any(file in line and "fetching again" in line for line in answer["said"])


def test_a_partial_that_was_corrupted_on_disk_is_replaced(hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault("more.parquet", "status", status=403))
    assert fetched(hub, "dataset", DATA, tmp_path / "w")["error"] == "MachineError"
    kept = tmp_path / "w" / PARTIAL / "train.jsonl"
    kept.write_bytes(b"x" * kept.stat().st_size)
    answer = fetched(hub, "dataset", DATA, tmp_path / "w")
    assert contents(Path(answer["path"])) == hub.datasets[DATA].files


def test_bytes_that_stay_wrong_are_an_error(hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault("more.parquet", "corrupt", times=9, after=1000))
    answer = fetched(hub, "dataset", DATA, tmp_path / "w")
    assert answer["error"] == "MachineError"
    assert "damaged twice" in answer["text"]
    assert "data/more.parquet" in answer["text"]
    assert find("dataset", DATA, tmp_path / "w") is None


def test_a_mirror_that_lists_wrong_git_ids_is_pardoned(hub: Hub, tmp_path: Path) -> None:
    hub.datasets[DATA] = Repository({"train.jsonl": rows(5)}, git_ids={"train.jsonl": "0" * 40})
    answer = fetched(hub, "dataset", DATA, tmp_path / "w")
    assert answer["source"] == "hub"
    assert any("listing is taken to be wrong" in line for line in answer["said"])


def test_files_of_a_replaced_revision_do_not_stay(hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault("more.parquet", "status", status=403))
    assert fetched(hub, "dataset", DATA, tmp_path / "w")["error"] == "MachineError"
    hub.datasets[DATA] = Repository({"new.jsonl": rows(3)})
    answer = fetched(hub, "dataset", DATA, tmp_path / "w")
    assert contents(Path(answer["path"])) == hub.datasets[DATA].files


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_a_name_that_the_hub_does_not_know(hub: Hub, tmp_path: Path, kind: str) -> None:
    answer = fetched(hub, kind, "nobody/nothing", tmp_path / "w")
    assert answer["error"] == "UsageError"
    assert "nobody/nothing" in answer["text"]
    assert str(tmp_path / "w" / f"{kind}s" / "nobody/nothing") in answer["text"]
    assert hub.url in answer["text"]


def test_a_gated_model_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    hub.models["meta/closed"] = Repository({"config.json": b"{}"}, gated=True)
    answer = fetched(hub, "model", "meta/closed", tmp_path / "w")
    assert answer["error"] == "UsageError"
    assert "HF_TOKEN" in answer["text"]


def test_repositories_without_usable_files(hub: Hub, tmp_path: Path) -> None:
    hub.models["old/pickle"] = Repository({"config.json": b"{}", "pytorch_model.bin": b"x"})
    hub.datasets["some/images"] = Repository({"a.png": b"x", "b.png": b"y"})
    answer = fetched(hub, "model", "old/pickle", tmp_path / "w")
    assert answer["error"] == "UsageError"
    assert "*.safetensors" in answer["text"]
    assert "pytorch_model.bin" in answer["text"]
    answer = fetched(hub, "dataset", "some/images", tmp_path / "w")
    assert answer["error"] == "UsageError"
    assert "a.png" in answer["text"]


def test_a_hub_that_is_gone(hub: Hub, tmp_path: Path) -> None:
    hub.stop()
    answer = fetched(hub, "dataset", DATA, tmp_path / "w")
    assert answer["error"] == "MachineError"
    assert hub.url in answer["text"]
    assert "or give their directory" in answer["text"]
    assert answer["text"].count("\n") == 1, "one message and one hint"


def test_offline_without_the_data(hub: Hub, tmp_path: Path) -> None:
    answer = fetched(hub, "dataset", DATA, tmp_path / "w", HF_HUB_OFFLINE="1")
    assert answer["error"] == "MachineError"
    assert "HF_HUB_OFFLINE" in answer["text"]
    assert hub.requests == []


def test_a_local_directory_is_used_as_it_is_without_any_request(hub: Hub, tmp_path: Path) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    (own / "data.csv").write_text("a,b\n")
    assert fetched(hub, "dataset", str(own), tmp_path / "w")["source"] == "path"
    kept = tmp_path / "w" / "models" / MODEL
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("mine")
    answer = fetched(hub, "model", MODEL, tmp_path / "w", HF_HUB_OFFLINE="1")
    assert (answer["source"], answer["path"], answer["revision"]) == ("disk", str(kept), None)
    assert hub.requests == []
    assert contents(kept) == {"config.json": b"mine"}


@pytest.mark.parametrize(
    "name", ["../outside", "a/../../b", "/no/such/place", "a/b/c", "a b", "", ".hidden/x", "a--b", "x\0y"]
)
def test_names_that_are_neither_a_directory_nor_a_hub_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    with pytest.raises(UsageError, match="neither a directory nor a name"):
        fetch("dataset", name, tmp_path / "datasets", print)


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("{}")
    with pytest.raises(UsageError, match="is a file") as raised:
        fetch("dataset", str(file), tmp_path / "w", print)
    assert str(tmp_path) in raised.value.hint


def test_two_processes_download_once(hub: Hub, tmp_path: Path) -> None:
    both = [start(hub, "dataset", DATA, tmp_path / "w") for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    assert sorted(answer["source"] for answer in answers) == ["disk", "hub"]
    assert hub.downloads("more.parquet") == 1


def test_ctrl_c_ends_a_download_in_the_middle(hub: Hub, tmp_path: Path) -> None:
    hub.datasets["big"] = Repository({"a.jsonl": bytes(60_000_000)})
    hub.faults.append(Fault("a.jsonl", "slow"))
    with start(hub, "dataset", "big", tmp_path / "w") as process:
        wait_for(lambda: hub.downloads("a.jsonl") == 1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert find("dataset", "big", tmp_path / "w") is None
    assert not list((tmp_path / "w").rglob("a.jsonl")), "the whole file was waited for"
