"""Figures as text."""

from __future__ import annotations


def seconds(value: float) -> str:
    """A time with three digits and a fitting unit.

    >>> seconds(15.32), seconds(0.0901), seconds(0.00023)
    ('15.3 s', '90.1 ms', '230 us')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:.0f} {unit}"
    return f"{value / 1e-9:.3g} ns"


def size(value: float) -> str:
    """Bytes in MiB or GiB.

    >>> size(3 * 2**30), size(2**20)
    ('3.00 GiB', '1.0 MiB')
    """
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def ratio(value: float) -> str:
    """Two digits behind the point, fewer for what is large, two digits that say something for what is small.

    >>> ratio(123.4), ratio(2.0), ratio(0.0037)
    ('123x', '2.00x', '0.0037x')
    """
    if value >= 19.995:
        return f"{value:.0f}x"
    return f"{value:.2f}x" if value >= 0.0995 else f"{value:#.2g}x"


def verdict(value: float, kind: str, of: str) -> str:
    """A ratio in words: nothing slower is called faster.

    >>> verdict(2.0, "speed-up", "time"), verdict(0.9, "speed-up", "time"), verdict(0.9, "cost", "peak")
    ('2.00x faster', '0.90x the speed', '0.90x the memory')
    """
    if kind == "cost":
        return f"{ratio(value)} the {'memory' if of == 'peak' else 'time'}"
    more = value >= 1.005  # than 1 as it is written
    if of == "peak":
        return ratio(value) + (" less memory" if more else " the other's memory over ours")
    return ratio(value) + (" faster" if more else " the speed")


def runs(side: dict[str, object]) -> str:
    """How often a side was timed.

    >>> runs({"times": [1.5]}), runs({"times": [1.5, 1.4]})
    ('1 run', '2 runs')
    """
    times = side["times"]
    assert isinstance(times, list)
    return f"{len(times)} run{'s' if len(times) > 1 else ''}"
