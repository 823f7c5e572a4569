"""How `sockmap-lb tap` writes what it sees."""

import time

import pytest

from lb.cli.tap import format_bytes, format_duration, format_line
from lb.server import Line

LINE = Line(
    time=1_700_000_000.25,
    client="10.0.0.7:41234",
    pool="workers",
    backend="a",
    size=64,
    batch=1,
    duration_seconds=0.000_213,
    outcome="answered",
    bytes=(b"\0\0\0\x3c" + bytes(range(4)) + b"hello").hex(),
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0.00 us"),
        (0.000_001_5, "1.50 us"),
        (0.000_012_34, "12.3 us"),
        (0.000_213, "213 us"),
        (0.000_999_4, "999 us"),
        (0.000_999_7, "1.00 ms"),
        (0.009_994, "9.99 ms"),
        (0.009_996, "10.0 ms"),
        (0.099_96, "100 ms"),
        (1.0, "1.00 s"),
        (75.0, "75.0 s"),
        (1234.0, "1234 s"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


def test_bytes_in_groups_from_the_start() -> None:
    assert (
        format_bytes(b"\x00\x01\x02\x03GET \x7f\xff", 16)
        == "00010203 47455420 7fff" + " " * 13 + "  ....GET .."
    )


def test_nothing_of_a_message_reaches_the_terminal_but_what_can_be_printed() -> None:
    text = format_bytes(bytes(range(256)), 256)
    assert text.isprintable()


def test_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert format_line(LINE, 16) == (
        "22:13:20.250000  10.0.0.7:41234         workers/a              64    213 us"
        "  0000003c 00010203 68656c6c 6f        ...<....hello"
    )


def test_a_denied_message_has_no_backend() -> None:
    line = format_line(
        LINE | {"pool": None, "backend": None, "duration_seconds": None, "outcome": "denied"}, 4
    )
    assert line.split()[2:5] == ["denied", "64", "-"]
