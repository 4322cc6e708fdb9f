"""Shares in percent, in words that claim none or all only where it is none or all."""

import math

__all__ = ["in_percent"]

_MOST = 6  # decimals


def in_percent(share: float) -> str:
    """A finite share as a whole number of percent, with decimals where rounding would mislead.

    Examples:
        >>> [in_percent(share) for share in (0.0, 0.0004, 0.031, 0.5, 0.9996, 1.0)]
        ['0 %', '0.04 %', '3 %', '50 %', '99.96 %', '100 %']
    """
    points = 100 * share
    if abs(points) >= 99_999.5:
        return f"{points:.1e} %"
    if 0 < abs(points) < 10**-_MOST:
        return f"{points:.0e} %"
    near = 0 < abs(points) < 0.995 or 99 < abs(points) < 100
    text = f"{points:.1f}" if near else f"{points:,.0f}"
    for decimals in range(2, _MOST + 1):
        if not near or not math.isclose(float(text), round(float(text) / 100) * 100, abs_tol=1e-9):
            break
        text = f"{points:.{decimals}f}"
    return f"{'0' if text.strip('-0.') == '' else text} %"
