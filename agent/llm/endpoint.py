"""Where a language model answers, with which key, and at what price."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from agent.errors import MachineError, UsageError
from agent.records import Usage

if TYPE_CHECKING:
    from agent.settings import Endpoint as Configured

OPENAI_URL = "https://api.openai.com/v1"
PRIVATE_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
"""Ends of names that no public DNS knows (RFC 6761, 6762, 8375; ICANN's .internal); nor does it names without a dot."""
SHORTEST_SECRET = 8  # shorter "keys" are placeholders (EMPTY, none) and also common words


class Secret:
    """A text that is shown only where `reveal` is written."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text.strip()

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def hide_in(self, text: str) -> str:
        """`text` without the secret."""
        return text.replace(self._text, "***") if len(self._text) >= SHORTEST_SECRET else text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars per million tokens; None where not known."""

    input: float | None = None
    output: float | None = None


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model answers.

    Attributes:
        base_url: With or without `/v1`; None means OpenAI's own.
        key: None where the endpoint wants none.
        settings: Prefix of the settings that an error tells the user to look at.
    """

    model: str
    base_url: str | None = None
    key: Secret | None = None
    settings: str = "FT_CHAT"

    @staticmethod
    def of(configured: Configured, settings: str = "FT_CHAT") -> Endpoint:
        """The endpoint that the settings name; UsageError if its base URL is none."""
        key = Secret(configured.api_key) if configured.api_key else None
        endpoint = Endpoint(model=configured.model, base_url=configured.base_url, key=key, settings=settings)
        endpoint.urls()
        return endpoint

    @property
    def address(self) -> str:
        """The base URL for people: without credentials and query."""
        parts = urlsplit(self.base_url or OPENAI_URL)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")

    @property
    def local(self) -> bool:
        """Whether it is this machine or a private network, where nobody sends bills."""
        host = urlsplit(self.base_url or OPENAI_URL).hostname or ""
        try:
            return not ipaddress.ip_address(host).is_global
        except ValueError:
            return "." not in host or host.endswith(PRIVATE_NAMES)

    def redact(self, text: str) -> str:
        """`text` without the key."""
        return self.key.hide_in(text) if self.key else text

    def redacted(self, data: Any) -> Any:
        """JSON `data` without the key, which an endpoint may have hidden behind JSON escapes."""
        if isinstance(data, dict):
            return {self.redact(str(key)): self.redacted(value) for key, value in data.items()}
        if isinstance(data, list):
            return [self.redacted(value) for value in data]
        return self.redact(data) if isinstance(data, str) else data

    def urls(self) -> tuple[str, str]:
        """The base URL to try first, and its other form (without or with `/v1`); UsageError if it is none."""
        try:
            parts = urlsplit(self.base_url or OPENAI_URL)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise UsageError(
                f"{self.settings}_API_BASE is not an http(s) URL (its value, which may hold a password, is not shown)",
                "write it as https://host/v1 or http://127.0.0.1:8000",
            )
        path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
        other = path.removesuffix("/v1") if path.endswith("/v1") else f"{path}/v1"
        first, second = (parts._replace(path=form, fragment="").geturl() for form in (path, other))
        return first, second


class EndpointError(MachineError):
    """The endpoint cannot be used.

    `usage` is what was consumed before that was known; `status` is the HTTP status of a refusal that asking again
    cannot change, None where the endpoint failed otherwise.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.usage = Usage()
        self.status: int | None = None


class ContextOverflow(EndpointError):
    """The prompt is longer than the model's context; `fits` is the share of it that would do, as far as was said."""

    fits: float = 0.5


def charge(error: BaseException, usage: Usage) -> None:
    """Add to `error.usage`, on whatever exception, what was consumed before it was raised."""
    carrier: Any = error
    carried = getattr(error, "usage", None)
    carrier.usage = usage + carried if isinstance(carried, Usage) else usage
