"""PromQL over farebox's metrics. Every function returns one expression; `$names` are the dashboard's variables.

Counters of one label set are born with their first event: before it there is no series. `rate` and `increase` see
only what is added later, so a key's single call of the day would count as nothing. `rate` is left so, because a
graph over time shows shapes; figures that people read as amounts use `total`, which counts births too.
"""

from __future__ import annotations

KEYED = 'provider=~"$provider",model=~"$model",key=~"$key"'
"""For metrics that know the caller."""
MODELLED = 'provider=~"$provider",model=~"$model"'
"""For histograms: a key in them would multiply the series by their buckets."""
PROVIDED = 'provider=~"$provider"'
MODEL_ONLY = 'model=~"$model"'

FAILED = 'outcome=~"upstream_error|upstream_cut|farebox_cut",status!~"400|404|413|422"'
"""Calls that went wrong, less those whose request was wrong (bad, unknown model, too large): no operator mends them."""


def selector(metric: str, *labels: str) -> str:
    """`metric{…}` with the label matchers that are not empty."""
    matchers = ",".join(label for label in labels if label)
    return f"{metric}{{{matchers}}}" if matchers else metric


def summed(expression: str, by: str = "") -> str:
    """The sum over all series, or one for each value of the labels `by`."""
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def rate(metric: str, *labels: str, by: str = "", window: str = "$__rate_interval") -> str:
    """What is added per second."""
    return summed(f"rate({selector(metric, *labels)}[{window}])", by)


def total(metric: str, *labels: str, by: str = "", window: str = "$__range") -> str:
    """What was added within the range that is shown, births and restarts included; for an instant query.

    A series older than the range, or restarted in it: its increase. One born in the range: its last value, which is
    exactly what it ever counted. (Born and restarted: its increase, less what its first sample held.)
    """
    series = selector(metric, *labels)
    elder = f"({series} offset {window} or resets({series}[{window}]) > 0)"
    return summed(f"increase({series}[{window}]) and {elder} or last_over_time({series}[{window}])", by)


def or_zero(expression: str) -> str:
    """The expression, or 0 where it is nothing at all: for counts of events that may never happen."""
    return f"{expression} or on () vector(0)"


def lively(metric: str, by: str) -> str:
    """The rate for those values of `by` that had any increase in the range before: for labels with many quiet ones."""
    return f"{rate(metric, by=by)} and {summed(f'increase({metric}[$__range])', by)} > 0"


def ratio(part: str, whole: str) -> str:
    """A share from 0 to 1; nothing, not NaN, while the whole is nothing."""
    return f"({part}) / ({whole} > 0)"


def failed_ratio(labels: str, *, by: str = "", window: str = "$__rate_interval") -> str:
    """The share of calls that went wrong; 0, not nothing, while all go well."""
    requests = "farebox_requests_total"
    every = rate(requests, labels, by=by, window=window)
    failed = rate(requests, labels, FAILED, by=by, window=window)
    # `0 * every`: a zero for each label set that has calls but not one failure.
    return ratio(f"{failed} or 0 * {every}", every)


def quantile(q: float, histogram: str, labels: str, *, by: str = "", window: str = "$__rate_interval") -> str:
    """The quantile `q` of a histogram, over all its series or for each value of the labels `by`."""
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, {rate(histogram + '_bucket', labels, by=groups, window=window)})"


def known(expression: str) -> str:
    """The expression without NaN: a quantile of no calls at all is nothing rather than NaN."""
    return f"{expression} >= 0"
