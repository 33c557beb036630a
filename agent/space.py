"""The search space of a proposer that is no language model: which recipe keys vary, and over what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec

from agent.records import Scalar, Value


class Float(msgspec.Struct, frozen=True, tag=True):
    """A real number in [low, high], uniform or log-uniform; rounded to `digits` significant digits for people."""

    low: float
    high: float
    log: bool = False
    digits: int = 2

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log)

    def at(self, unit: float) -> float:
        """The value at `unit` in [0, 1)."""
        if self.log:
            return self.round(self.low * (self.high / self.low) ** unit)
        return self.round(self.low + (self.high - self.low) * unit)

    def round(self, value: float) -> float:
        """`value` with few significant digits, never outside the range."""
        return min(max(float(f"{value:.{self.digits - 1}e}"), self.low), self.high)

    def holds(self, value: Value) -> bool:
        """Whether `value` lies in this domain."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


class Int(msgspec.Struct, frozen=True, tag=True):
    """A whole number in [low, high], both included, uniform or log-uniform."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log)

    def at(self, unit: float) -> int:
        """The value at `unit` in [0, 1)."""
        low, high = self.low - 0.5, self.high + 0.5
        real = low * (high / low) ** unit if self.log else low + (high - low) * unit
        return min(max(round(real), self.low), self.high)

    def holds(self, value: Value) -> bool:
        """Whether `value` lies in this domain."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high


class Choice(msgspec.Struct, frozen=True, tag=True):
    """One of a few values; their order means nothing."""

    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError(f"a choice needs distinct values, got {self.values}")

    def at(self, unit: float) -> Scalar:
        """The value at `unit` in [0, 1)."""
        return self.values[min(int(unit * len(self.values)), len(self.values) - 1)]

    def holds(self, value: Value) -> bool:
        """Whether `value` lies in this domain."""
        return any(value == known and type(value) is type(known) for known in self.values)


Domain = Float | Int | Choice


class Parameter(msgspec.Struct, frozen=True):
    """One recipe key that varies; with `when`, only where an earlier key has that value (lora_rank with lora)."""

    key: str
    domain: Domain
    when: tuple[str, Scalar] | None = None

    def active(self, values: Mapping[str, Value]) -> bool:
        """Whether this key is part of a recipe with these values."""
        return self.when is None or values.get(self.when[0]) == self.when[1]


class Space(msgspec.Struct, frozen=True):
    """All parameters, the most important first (a space-filling start spreads that one best), and fixed keys."""

    parameters: tuple[Parameter, ...]
    fixed: dict[str, Value] = {}

    def __post_init__(self) -> None:
        seen: dict[str, Domain] = {}
        for parameter in self.parameters:
            if parameter.key in seen or parameter.key in self.fixed:
                raise ValueError(f"{parameter.key} is twice in the search space")
            if parameter.when is not None:
                key, value = parameter.when
                if key not in seen or not seen[key].holds(value):
                    raise ValueError(f"{parameter.key} depends on {key}={value!r}, which no earlier parameter has")
            seen[parameter.key] = parameter.domain

    def walk(self, values: Mapping[str, Value]) -> Iterator[Parameter]:
        """The active parameters in order; `values` may be filled while walking."""
        return (parameter for parameter in self.parameters if parameter.active(values))

    def restrict(self, train: Mapping[str, Value]) -> dict[str, Value] | None:
        """The part of a recipe that this space varies; None if the recipe lies outside the space."""
        values: dict[str, Value] = {}
        for parameter in self.walk(train):
            if parameter.key not in train or not parameter.domain.holds(train[parameter.key]):
                return None
            values[parameter.key] = train[parameter.key]
        return values


def _check_range(low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"a range needs low < high, got [{low}, {high}]")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range must be positive, got [{low}, {high}]")
