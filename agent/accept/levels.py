"""How sure a comparison has to be: the share of a study's error that each candidate may spend.

A study compares many candidates with one base, each comparison is a chance to mistake noise for progress, and nobody
knows beforehand how many there will be. The spending rule: the first `CANDIDATES` candidates have the same one-sided
level `ALPHA`; the i-th after them has ALPHA * (CANDIDATES / i)**3, whose sum over all of them, however many, is that of
half as many candidates again.

What is proved: with the exact test the levels of 30 candidates would add up to 0.12, and those of any number to 0.18,
at most (Bonferroni). What is simulated: with the mid-p test that is used, 30 candidates that all equal the base are
called better in at most `STUDY_ERROR` of the studies (they share one base score, so their errors overlap).
"""

from __future__ import annotations

STUDY_ERROR = 0.10
CANDIDATES = 30
ALPHA = 0.004
"""One-sided level of each of the first `CANDIDATES` comparisons."""
SINGLE = 0.025
"""One-sided level of a comparison that stands for itself, such as the sealed test: a two-sided interval of 95%."""


def level(candidate: int) -> float:
    """One-sided level of a study's comparison, counted from 1."""
    if candidate < 1:
        raise ValueError(f"candidates are counted from 1, got {candidate}")
    return ALPHA * float(min(1.0, CANDIDATES / candidate)) ** 3
