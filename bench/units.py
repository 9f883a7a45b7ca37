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
    return f"{value:.0f}x" if value >= 20 else f"{value:.2f}x"
