"""`--dry-run` says where the language model answers, and gives nothing away."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import dry_run
from agent.errors import UsageError
from agent.options import parse
from agent.settings import load


def proposer(tmp_path: Path, **environ: str) -> str:
    settings = load({}, None, environ, tmp_path)
    return dict(dry_run.rows(parse(["--dataset", "demo/reverse"]), settings))["proposer"]


def test_credentials_in_a_base_url_are_not_shown(tmp_path: Path) -> None:
    said = proposer(
        tmp_path, FT_CHAT_API_BASE="https://user:a-secret@host:8443/v1?api-key=another", FT_CHAT_MODEL="gpt-x"
    )
    assert said == "gpt-x at https://host:8443/v1"


def test_the_usual_endpoint_is_named(tmp_path: Path) -> None:
    assert proposer(tmp_path, OPENAI_API_KEY="a-secret", FT_CHAT_MODEL="gpt-x") == "gpt-x at https://api.openai.com/v1"


def test_a_base_url_that_is_none_is_refused_here_already(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FT_CHAT_API_BASE") as caught:
        proposer(tmp_path, FT_CHAT_API_BASE="https://user:a-secret@[host/v1")
    assert "a-secret" not in str(caught.value)
