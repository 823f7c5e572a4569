"""Durations and sizes as operators write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.config.units import UnitError, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("1ms", 0.001), ("2s", 2.0), ("10m", 600.0), ("1h", 3600.0), ("0s", 0.0)],
)
def test_a_duration_is_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("64KiB", 65536), ("1MiB", 1 << 20), ("1GiB", 1 << 30)],
)
def test_a_size_is_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("2", "has no unit", "write 2s"),
        ("2sec", "has an unknown unit", "durations end in ms, s, m or h"),
        ("2S", "has an unknown unit", "durations end in ms, s, m or h"),
        *(
            (text, "is not a duration", "durations are whole numbers with a unit: 250ms, 2s, 10m, 1h")
            for text in ("", "s", "-1s", "1.5s", "1 s", "1s ", "1m30s", "٣s", "9" * 5000 + "s")
        ),
    ],
)
def test_what_is_no_duration_says_what_to_write(text: str, problem: str, remedy: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_duration(text)

    assert (caught.value.problem, caught.value.remedy) == (problem, remedy)


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("1kB", "has an unknown unit", "sizes end in KiB, MiB or GiB, or are plain bytes"),
        ("1mib", "has an unknown unit", "sizes end in KiB, MiB or GiB, or are plain bytes"),
        *(
            (text, "is not a size", "sizes are whole numbers: 64KiB, 1MiB, 1GiB, or plain bytes")
            for text in ("", "KiB", "-1", "1.5MiB", "1 KiB", "0x10", "9" * 5000)
        ),
    ],
)
def test_what_is_no_size_says_what_to_write(text: str, problem: str, remedy: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_size(text)

    assert (caught.value.problem, caught.value.remedy) == (problem, remedy)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0ms"), (0.01, "10ms"), (1.5, "1500ms"), (90.0, "90s"), (86400.0, "24h")]
)
def test_a_duration_is_shown_in_the_largest_whole_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0"), (1000, "1000"), (65536, "64KiB"), (64 << 20, "64MiB")])
def test_a_size_is_shown_in_the_largest_whole_unit(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 10**12))
def test_what_is_shown_reads_back(number: int) -> None:
    assert parse_duration(format_duration(number / 1000)) == number / 1000
    assert parse_size(format_size(number)) == number
