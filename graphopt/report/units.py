"""Numbers for people: short, with a unit, never more digits than mean something."""

from __future__ import annotations

_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(number: float | None) -> str:
    """A count with a decimal prefix: 4.09 G, 25.6 M, 176."""
    if number is None:
        return "unknown"
    for factor, prefix in _DECIMAL:
        if abs(number) >= 0.9995 * factor:
            return f"{_three_digits(number / factor)} {prefix}"
    return f"{number:.0f}"


def size(number: float | None) -> str:
    """Bytes with a decimal prefix, as the budgets of the command line read them: 97.8 MB."""
    if number is None:
        return "unknown"
    text = count(number)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def duration(seconds: float | None) -> str:
    """Seconds, from microseconds up: 12 µs, 3.4 ms, 1.25 s."""
    if seconds is None:
        return "unknown"
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= 0.9995 * factor:
            return f"{_three_digits(seconds / factor)} {unit}"
    return f"{_three_digits(seconds * 1e6)} µs"


def milliseconds(number: float | None) -> str:
    """Milliseconds, as `duration` writes them."""
    return duration(None if number is None else number / 1e3)


def change(before: float | None, after: float | None) -> str:
    """How much `after` is away from `before`: -35.2 %, 0 %; empty where that means nothing."""
    if not before or after is None:
        return "0 %" if before == 0 and after == 0 else ""
    if before == after:
        return "0 %"
    percent = 100 * (after / before - 1)
    return f"{percent:+.0f} %" if abs(percent) >= 100 else f"{percent:+.1f} %"


def _three_digits(number: float) -> str:
    decimals = 0 if abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2
    return f"{number:.{decimals}f}"
