"""What stages' benches of tests have in common."""


class Unhurried:
    """All the time in the world, as a call without --timeout has."""

    def left(self) -> float | None:
        return None

    def whole(self) -> float | None:
        return None
