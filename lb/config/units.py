"""Durations and sizes as an operator writes them: `250ms`, `10m`, `64KiB`."""

import re

_MILLISECONDS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_BYTES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
# More digits than any limit has; int() refuses to convert thousands of them.
_QUANTITY = re.compile(r"([0-9]{1,18})([A-Za-z]*)")


class UnitError(ValueError):
    """A text is no quantity: `problem` says why, `remedy` what to write."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy


def parse_duration(text: str) -> float:
    """Return the seconds that a text such as `250ms`, `2s`, `10m` or `1h` means; raises UnitError."""
    number, unit = _split(text, "a duration", "durations are whole numbers with a unit: 250ms, 2s, 10m, 1h")
    if not unit:
        raise UnitError("has no unit", f"write {number}s")
    if unit not in _MILLISECONDS:
        raise UnitError("has an unknown unit", "durations end in ms, s, m or h")
    return number * _MILLISECONDS[unit] / 1000


def parse_size(text: str) -> int:
    """Return the bytes that a text such as `512`, `64KiB`, `1MiB` or `1GiB` means; raises UnitError."""
    number, unit = _split(text, "a size", "sizes are whole numbers: 64KiB, 1MiB, 1GiB, or plain bytes")
    if unit not in _BYTES:
        raise UnitError("has an unknown unit", "sizes end in KiB, MiB or GiB, or are plain bytes")
    return number * _BYTES[unit]


def format_duration(seconds: float) -> str:
    """Return whole milliseconds as text, in the largest unit that keeps them whole."""
    number = round(seconds * 1000)
    unit = next((unit for unit, size in _MILLISECONDS.items() if number and number % size == 0), "ms")
    return f"{number // _MILLISECONDS[unit]}{unit}"


def format_size(size: int) -> str:
    """Return bytes as text, in the largest unit that keeps them whole."""
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if size and size % _BYTES[unit] == 0), "")
    return f"{size // _BYTES[unit]}{unit}"


def _split(text: str, kind: str, remedy: str) -> tuple[int, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UnitError(f"is not {kind}", remedy)
    return int(match[1]), match[2]
