"""A data script's access to language models: one gateway a run, and who is to blame where no answer came."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import BudgetEnded, MachineError
from agent.gateway import Gateway, Judged
from scenarios import Bench

Open = Callable[[], Gateway]
"""Makes the gateway to the study's strong and weak models (FT_STRONG_MODELS, FT_WEAK_MODELS), for one job."""


class Session:
    """What the runs of one script may ask; what that cost is counted in the stage as soon as a run is over.

    Args:
        models: None where no model is offered.
    """

    def __init__(self, models: Open | None, bench: Bench) -> None:
        self._models, self._bench = models, bench
        self._last: Judged | None = None

    @contextmanager
    def door(self) -> Iterator[Path | None]:
        """The socket for one run, which is closed with it.

        Raises:
            MachineError: The endpoint is down, or refuses us: what the script made of that is no finding, also where it
                got by without the answers. Those that there are are kept.
        """
        if self._models is None:
            yield None
            return
        gateway = self._models()
        try:
            with gateway.open() as door:
                yield door.socket
        finally:
            self._last = gateway.report()
            if self._last.usage.calls:
                self._bench.spend(self._last.usage, paid=True)
        if self._last.failure:
            raise MachineError(
                f"a data script asked for answers that could not be had: {self._last.failure}",
                "mend FT_CHAT_, FT_STRONG_MODELS or FT_WEAK_MODELS, or wait; answers so far are not asked for again",
            )

    def require_money(self) -> None:
        """Asked where a script failed: raises BudgetEnded where the study's money did not reach for its questions."""
        if self._last is not None and self._last.unpaid:
            raise BudgetEnded(self._last.unpaid)
