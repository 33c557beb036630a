"""The few distributions that the acceptance rule needs, in plain Python: the host stays free of scipy."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

NORMAL = NormalDist()


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for X ~ Binomial(n, p)."""
    if k <= 0:
        return 1.0
    return 0.0 if k > n else incomplete_beta(k, n - k + 1, p)


def mid_p(k: int, n: int, p: float = 0.5) -> float:
    """P(X > k) + P(X = k) / 2 for X ~ Binomial(n, p): the tail that counts what was seen by half (Lancaster 1961)."""
    return (binomial_tail(k, n, p) + binomial_tail(k + 1, n, p)) / 2


def mid_p_lower_bound(k: int, n: int, alpha: float) -> float:
    """Lower bound of a proportion: the p at which the mid-p tail of k out of n is alpha; 0 for k = 0."""
    return bisect(lambda p: mid_p(k, n, p) >= alpha, 0.0, 1.0) if k else 0.0


def normal_quantile(p: float) -> float:
    """The z below which a standard normal falls with probability p; infinite at 0 and 1."""
    if not 0.0 < p < 1.0:
        return math.copysign(math.inf, p - 0.5)
    return NORMAL.inv_cdf(p)


def t_tail(t: float, df: int) -> float:
    """P(T >= t) for Student's t with df degrees of freedom; 1 where there are none."""
    if df < 1:
        return 1.0
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    tail = 0.5 * incomplete_beta(df / 2, 0.5, df / (df + t * t))
    return tail if t > 0 else 1 - tail


def t_quantile(alpha: float, df: int) -> float:
    """The t that is exceeded with probability alpha <= 1/2; infinite without a degree of freedom."""
    return bisect(lambda t: t_tail(t, df) <= alpha, 0.0, 1e6) if df >= 1 else math.inf


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized incomplete beta function by its continued fraction (DLMF 8.17.22, modified Lentz)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-13:
            break
    return math.exp(log_front) * fraction / a


def bisect(reached: Callable[[float], bool], low: float, high: float) -> float:
    """Smallest x in [low, high] for which the monotone predicate holds; `high` where it never does."""
    for _ in range(60):
        middle = (low + high) / 2
        if reached(middle):
            high = middle
        else:
            low = middle
    return high
