"""Rates with intervals, paired differences and tests: thin wrappers, so that all figures are counted the same way.

A rate is always {"value", "low", "high", "n"}; low and high are the bounds of its 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import bootstrap, ttest_1samp
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_test
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from auditkit.errors import AuditError


def rate(successes: int, n: int) -> dict:
    """A share with its Wilson interval. Raises AuditError where nothing was counted: that is no rate of 0.

    >>> rate(45, 50)
    {'value': 0.9, 'low': 0.7864, 'high': 0.9565, 'n': 50}
    """
    if n < 1:
        raise AuditError("a rate cannot be assessed: nothing was counted (n = 0).")
    if not 0 <= successes <= n:
        raise AuditError(f"a rate needs 0 <= successes <= n, got {successes} of {n}.")
    low, high = proportion_confint(int(successes), int(n), method="wilson")
    return _rounded(successes / n, low, high, n)


def mean(rates: Iterable[dict], weights: Sequence[float] | None = None) -> dict:
    """The mean of independent rates, as over skills, or over strata of the given sizes; n adds up.

    Its interval combines the rates' own (MOVER, Zou & Donner 2008), so it stays honest near 0 and 1.

    >>> mean([rate(45, 50), rate(25, 50)])
    {'value': 0.7, 'low': 0.6123, 'high': 0.7725, 'n': 100}
    >>> mean([rate(45, 50), rate(25, 50)], [300, 100])
    {'value': 0.8, 'low': 0.7085, 'high': 0.854, 'n': 100}
    """
    rates = list(rates)
    if not rates:
        raise AuditError("a mean cannot be assessed: there are no rates.")
    weights = [1.0] * len(rates) if weights is None else weights
    whole = sum(weights)
    value = sum(w * r["value"] for w, r in zip(weights, rates, strict=True)) / whole
    below = math.sqrt(sum((w * (r["value"] - r["low"])) ** 2 for w, r in zip(weights, rates, strict=True))) / whole
    above = math.sqrt(sum((w * (r["high"] - r["value"])) ** 2 for w, r in zip(weights, rates, strict=True))) / whole
    return _rounded(value, value - below, value + above, sum(r["n"] for r in rates))


def difference(before: Sequence[float], after: Sequence[float], seed: int = 0) -> dict:
    """Mean of after - before over the same items, with a paired bootstrap interval (percentiles of 2,000 resamples).

    Where all items change alike there is nothing to resample, and that is no certainty: of n cases none was seen to
    differ, so with 95 % confidence a share of at most 1 - 0.05^(1/n), some 3/n, does (the rule of three: Hanley &
    Lippman-Hand 1983), each by as much as a score between 0 and 1 can.

    >>> difference([0, 0, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 0, 1, 1, 0])
    {'value': 0.375, 'low': 0.125, 'high': 0.75, 'n': 8}
    >>> difference([1, 1, 1, 0], [1, 1, 1, 0])
    {'value': 0.0, 'low': -0.5271, 'high': 0.5271, 'n': 4}
    """
    change = _paired(before, after)
    if np.all(change == change[0]):
        others, most = 1 - 0.05 ** (1 / len(change)), max(1.0, abs(change[0]))
        low, high = ((1 - others) * change[0] + others * far for far in (-most, most))
        return _rounded(change[0], low, high, len(change))
    interval = bootstrap(
        (change,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(seed), batch=200
    ).confidence_interval
    return _rounded(change.mean(), interval.low, interval.high, len(change))


def over_seeds(values: Sequence[float]) -> dict:
    """The mean of one value a seed, its 95 % interval by Student's t, and how likely so far a mean from 0 is by chance.

    Seeds are the cases: an interval from three is wide, and says what another seed may bring. One seed has none.

    >>> over_seeds([0.02, 0.03, 0.04])
    {'mean': 0.03, 'low': 0.0052, 'high': 0.0548, 'p': 0.035, 'n': 3}
    """
    x = np.asarray(values, dtype=float)
    found = {"mean": round(float(x.mean()), 4)}
    if len(x) > 1 and not np.allclose(x, x[0]):
        test = ttest_1samp(x, 0.0)
        low, high = test.confidence_interval()
        found |= {"low": round(float(low), 4), "high": round(float(high), 4), "p": float(f"{test.pvalue:.2g}")}
    return found | {"n": len(x)}


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> dict:
    """Exact McNemar test on paired right/wrong answers: did more items turn right than wrong?

    >>> mcnemar([0, 0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1])
    {'gained': 6, 'lost': 0, 'p': 0.03125}
    """
    change = _paired(before, after)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    if gained + lost == 0:
        return {"gained": 0, "lost": 0, "p": 1.0}
    return {"gained": gained, "lost": lost, "p": float(mcnemar_test([[0, gained], [lost, 0]], exact=True).pvalue)}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for looking at several tests at once.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    return [round(float(p), 12) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def _paired(before, after) -> np.ndarray:
    if len(before) != len(after) or not len(before):
        raise AuditError(f"a paired comparison needs the same items twice, got {len(before)} and {len(after)}.")
    return np.asarray(after, dtype=float) - np.asarray(before, dtype=float)


def _rounded(value, low, high, n) -> dict:
    return {"value": round(float(value), 4), "low": round(float(low), 4), "high": round(float(high), 4), "n": int(n)}
