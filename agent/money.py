"""What may be spent on language models: US dollars of one study, reserved before each request."""

from __future__ import annotations

import threading

from agent.errors import BudgetEnded


class MoneySpent(BudgetEnded):
    """What is left does not cover what the next request may cost at worst."""


class Money:
    """The money of a study, shared by all that ask an endpoint; safe to use from several threads.

        money.reserve(most)          # what the request may cost at worst; MoneySpent if that is too much
        money.spend(cost, most)      # what it did cost, in place of what was reserved

    Args:
        limit: US dollars for the whole study; None for no limit.
        spent: What earlier calls of the study spent.
    """

    def __init__(self, limit: float | None = None, spent: float = 0.0) -> None:
        self.limit = limit
        self._spent = spent
        self._reserved = 0.0
        self._lock = threading.Lock()

    @property
    def spent(self) -> float:
        """US dollars so far, earlier calls included."""
        return self._spent

    def left(self) -> float | None:
        """US dollars that are neither spent nor reserved; None for no limit."""
        with self._lock:
            return None if self.limit is None else self.limit - self._spent - self._reserved

    def reserve(self, most: float) -> None:
        """Set aside what a request may cost at worst. Raises MoneySpent where less than that is left."""
        with self._lock:
            if self.limit is not None and most > 0 and self._spent + self._reserved + most > self.limit:
                raise MoneySpent(
                    f"the study's money is spent: {dollars(self._spent)} of {dollars(self.limit)} (FT_MAX_COST), "
                    f"and the next request may cost {dollars(most)}"
                )
            self._reserved += most

    def spend(self, cost: float, reserved: float = 0.0) -> None:
        """Count what a request cost, and give back what was reserved for it."""
        with self._lock:
            self._reserved -= reserved
            self._spent += cost


def dollars(amount: float) -> str:
    """ "$3.20"; small amounts with as many digits as they need ("$0.00042")."""
    return f"${amount:,.2f}" if amount >= 1 or amount == 0 else f"${amount:.2g}"
