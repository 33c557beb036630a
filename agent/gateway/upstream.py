"""The endpoint behind the gateway: how much is asked of it at a time, at what cost, and when it is given up.

Retries, time limits and the wording of what is wrong are those of `agent.llm.ChatModel`. Here many requests share one
endpoint, so that a dead one costs a bounded time and not that time once a sample: after `failures` samples in a row
without an answer, after a share of them beyond what is tolerated (an endpoint that hangs now and then), or after one
refusal before any answer (wrong key, unknown model), the rest are lost at once.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.errors import BudgetEnded, UsageError
from agent.llm import ChatModel, Endpoint, EndpointError, Message, Price, Reply
from agent.money import Money, MoneySpent
from agent.records import Usage

REFUSED = (401, 402, 403, 404, 405, 429)
"""What a refusal of every request looks like; 429 is one only where it says that the account is empty."""
TOLERATED = 0.1
"""Share of the samples that may stay without an answer before the endpoint is reported as failing."""
SHARE_OF = 20
"""Requests with an outcome before that share means anything."""
UNFIT = (400, 413, 422)
"""What the refusal of one request looks like, which says nothing about the next."""
CHARACTERS = 2
"""Of a token, at least; for the cost of a prompt before it is sent."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one gateway may ask of its endpoint.

    Attributes:
        concurrency: Requests at a time. per_minute: requests that begin in a minute; None for any number.
        call: Seconds for one request. patience: seconds for one sample, repeats and pauses included.
        retries: Further attempts after 429, 5xx or a lost connection.
        failures: Samples in a row without an answer, after which the endpoint is given up.
        asks: Times that a judge is asked for a verdict, where its answers are none.
        cost: US dollars that may be spent; None for no limit.
        money: The study's, in which what a request may cost at worst is reserved before it is sent; None for none.
        body: Longest request of the job, in bytes.
    """

    concurrency: int = 8
    per_minute: float | None = None
    call: float = 60.0
    patience: float = 120.0
    retries: int = 4
    failures: int = 5
    asks: int = 3
    cost: float | None = None
    money: Money | None = None
    body: int = 1_000_000


class Lost(Exception):
    """A sample got no answer; the text is one line that says why and what to do."""

    status = 503
    """What the job is answered."""


class Unfit(Lost):
    """The endpoint refuses what this request holds; another one may be answered."""

    status = 400


class Unpaid(Lost):
    """The study's money does not reach for it."""

    status = 402


class Closed(Lost):
    """The gateway was closed, because the job is over: no fault of the endpoint."""

    def __init__(self) -> None:
        super().__init__("the gateway is closed")


@dataclass
class Health:
    """What became of the samples that were sent.

    Attributes:
        answered: Requests with an answer. lost: samples without. row: lost since the last answer.
        reason: Of the last loss. broken: why nothing more is sent; None while something is.
        unpaid: Why the study's money did not reach for a request; None where it always did.
    """

    answered: int = 0
    lost: int = 0
    row: int = 0
    reason: str = ""
    broken: str | None = None
    unpaid: str | None = None

    @property
    def failing(self) -> bool:
        """Whether so many of so many are lost that the rest is not worth its time."""
        known = self.answered + self.lost
        return known >= SHARE_OF and self.lost > TOLERATED * known


class Upstream:
    """One endpoint, shared by the threads of a gateway.

    Args:
        temperature: Unless a request says another.
        various: Requests differ so much that the refusal of one says nothing about the endpoint.

    Raises:
        UsageError: The endpoint's URL or key is none, or its price is not known and `limits.cost` is to be held.
    """

    def __init__(
        self, endpoint: Endpoint, price: Price, limits: Limits, temperature: float, *, various: bool = False
    ) -> None:
        limited = limits.cost is not None or (limits.money is not None and limits.money.limit is not None)
        if limited and not _known(price, endpoint):
            raise UsageError(
                f"the price of {endpoint.model} at {endpoint.address} is not known, so a money budget cannot be held",
                "set its price per million tokens, or no limit on the cost",
            )
        self.endpoint, self.usage, self.health = endpoint, Usage(), Health()
        self._price, self._limits, self._various = price, limits, various
        self._lock = threading.Lock()
        self._one_ended = threading.Condition(self._lock)
        self._flying = 0
        self._closed = threading.Event()
        self._reserved = self._dearest = 0.0
        self._next_start = time.monotonic()
        self._seats: queue.LifoQueue[_Seat] = queue.LifoQueue()
        self._models: list[ChatModel] = []
        for _ in range(limits.concurrency):
            seat = _Seat(self)
            seat.model = ChatModel(
                endpoint,
                price,
                timeout=limits.call,
                retries=limits.retries,
                sleep=self._sleep,
                temperature=temperature,
                money=limits.money,
                left=seat.left,
            )
            self._models.append(seat.model)
            self._seats.put(seat)

    @contextlib.contextmanager
    def seat(self) -> Iterator[_Seat]:
        """The right to ask for one sample, one request at a time; waits for its turn. Raises Lost."""
        seat = self._seats.get()
        try:
            self.check()
            seat.deadline = time.monotonic() + self._limits.patience
            yield seat
        finally:
            self._seats.put(seat)

    def check(self) -> None:
        """Raises Lost where nothing more is sent."""
        if self._closed.is_set():
            raise Closed
        if self.health.broken:
            raise Lost(self.health.broken)

    def close(self) -> None:
        """End the requests under way; no other follows."""
        self._closed.set()
        with self._lock:
            self._one_ended.notify_all()
        for model in self._models:
            model.abandon()

    def ask(self, seat: _Seat, messages: Sequence[Message], options: Mapping[str, Any] | None) -> Reply:
        """One answer, within the limits. Raises Lost."""
        self.check()
        self._await_rate()
        reserved = self._reserve(messages)
        try:
            reply = self._complete(seat, messages, options)
        except (EndpointError, BudgetEnded) as error:
            raise self._lose(error) from None
        finally:
            with self._lock:
                self._reserved -= reserved
        with self._lock:
            self.usage += reply.usage
            self._dearest = max(self._dearest, reply.usage.cost or 0.0)
            self.health.answered, self.health.row = self.health.answered + 1, 0
        return reply

    def _complete(self, seat: _Seat, messages: Sequence[Message], options: Mapping[str, Any] | None) -> Reply:
        """One answer; where the money is reserved by other requests under way, once one of them has its own."""
        while True:
            with self._lock:
                self._flying += 1
            try:
                return seat.model.complete(messages, options=options)
            except MoneySpent as error:
                with self._lock:
                    if self._flying == 1 or self._closed.is_set():
                        raise
                    self.usage += getattr(error, "usage", Usage())
                    self._flying -= 1
                    self._one_ended.wait(self._limits.patience)
                    self._flying += 1
                self.check()
            finally:
                with self._lock:
                    self._flying -= 1
                    self._one_ended.notify_all()

    def _lose(self, error: EndpointError | BudgetEnded) -> Lost:
        consumed: Usage = getattr(error, "usage", Usage())
        with self._lock:
            self.usage += consumed
            if self._closed.is_set():
                return Closed()
            if isinstance(error, MoneySpent):
                self.health.unpaid = str(error)
                return Unpaid(str(error))
            if isinstance(error, EndpointError):
                reason = f"{error.message}: {error.hint}"
                if self._various and error.status in UNFIT:
                    return Unfit(reason)
            else:
                where, base = self.endpoint.address, f"{self.endpoint.settings}_API_BASE"
                reason = f"{where} gave no usable answer in {self._limits.patience:.4g} s: check it and {base}"
            health = self.health
            health.lost, health.row, health.reason = health.lost + 1, health.row + 1, reason
            refused = isinstance(error, EndpointError) and error.status in REFUSED and not health.answered
            if refused or health.row >= self._limits.failures or health.failing:
                health.broken = health.broken or reason
        return Lost(reason)

    def _reserve(self, messages: Sequence[Message]) -> float:
        """Set aside what a request may cost: as much as the dearest so far, and its prompt. Raises Lost."""
        if self._limits.cost is None:
            return 0.0
        prompt = sum(len(message["content"]) for message in messages) / CHARACTERS
        expected = max(self._dearest, prompt * (self._price.input or 0.0) / 1e6)
        with self._lock:
            if self.usage.cost is None:
                self.health.broken = f"{self.endpoint.address} does not say how many tokens it counts: set no limit"
            elif self.usage.cost + self._reserved + expected > self._limits.cost:
                spent = f"{self.usage.cost:.4g} of {self._limits.cost:.4g} US dollars are spent"
                self.health.broken = f"{self.endpoint.address} may cost no more: {spent}; raise the limit"
            else:
                self._reserved += expected
                return expected
            broken = self.health.broken
        raise Lost(broken)

    def _await_rate(self) -> None:
        if self._limits.per_minute is None:
            return
        with self._lock:
            start = max(self._next_start, time.monotonic())
            self._next_start = start + 60.0 / self._limits.per_minute
        self._sleep(start - time.monotonic())
        self.check()

    def _sleep(self, seconds: float) -> None:
        self._closed.wait(max(0.0, seconds))


@dataclass
class _Seat:
    """One of the `concurrency` places, with a chat model of its own."""

    upstream: Upstream
    deadline: float = 0.0
    model: ChatModel = field(init=False)

    def left(self) -> float:
        """Seconds that the sample may still take."""
        return self.deadline - time.monotonic()

    def ask(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None) -> Reply:
        """One answer. Raises Lost."""
        return self.upstream.ask(self, messages, options)


def _known(price: Price, endpoint: Endpoint) -> bool:
    """As `ChatModel` sees it: what is local and has no price is free."""
    return (price.input is not None and price.output is not None) or (endpoint.local and price == Price())
