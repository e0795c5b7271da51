"""The pass@k estimator."""

from __future__ import annotations

from math import comb


def pass_at_k(n: int, passed: int, k: int) -> float:
    """Return the probability that at least one of `k` answers is right.

    The `k` answers are drawn without replacement from `n`, of which `passed` are right. If `k` is
    larger than `n`, `n` is used. pass@k = 1 − C(n − c, k) / C(n, k) is unbiased (Chen et al. 2021,
    arXiv 2107.03374, equation 1).

    >>> pass_at_k(20, 1, 10), pass_at_k(4, 1, 10)
    (0.5, 1.0)
    """
    if not 0 <= passed <= n or n < 1:
        raise ValueError(f"{passed} of {n} answers right")
    k = min(k, n)
    return 1 - comb(n - passed, k) / comb(n, k)
