"""YAML that is valid, and that keeps a careless reader busy or ends it."""

_NINE = ", ".join(["*{}"] * 9)
_LISTS = ", ".join(
    f"{after}: &{after} [{_NINE.replace('{}', name)}]" for name, after in zip("abcdefg", "bcdefgh", strict=True)
)
KNOTTED = (
    "&a {learning_rate: 1, seed: *a}",  # holds itself
    f"{'[' * 3000}{']' * 3000}",
    f"{{a: &a [x], {_LISTS}}}",  # nine to the seventh, in 200 characters
    f"{{learning_rate: [{', '.join(map(str, range(30_000)))}]}}",
    f"{{learning_rate: {'x' * (1 << 18)}}}",
)
