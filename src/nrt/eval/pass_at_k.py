"""pass@k."""

from __future__ import annotations

from math import comb


def pass_at_k(n: int, passed: int, k: int) -> float:
    """Probability that at least one of `k` answers, drawn without replacement from `n` of which `passed` are right, is right.

    pass@k = 1 − C(n − c, k) / C(n, k): unbiased (Chen et al. 2021, arXiv 2107.03374, equation 1). `k` counts as `n` where it is more.

    >>> pass_at_k(20, 1, 10), pass_at_k(4, 1, 10)
    (0.5, 1.0)
    """
    if not 0 <= passed <= n or n < 1:
        raise ValueError(f"{passed} of {n} answers right")
    k = min(k, n)
    return 1 - comb(n - passed, k) / comb(n, k)
