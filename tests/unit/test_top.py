"""What ``top`` makes of two looks at the state."""

from typing import Any, cast

import pytest

from lb.cli.rates import between, percentile
from lb.cli.top import picture
from lb.status import ServerStatus


def status(uptime: float, *backends: dict[str, Any], **more: Any) -> ServerStatus:
    return cast(
        "ServerStatus",
        {
            "version": "0",
            "configuration": "test.yaml",
            "uptime_seconds": uptime,
            "state": "serving",
            "ready": True,
            "not_ready_because": [],
            "buffered_bytes": 3000,
            "dropped_messages": {},
            "listeners": [{"clients": 2}, {"clients": 3}],
            "pools": [{"name": "workers", "backends": list(backends)}],
        }
        | more,
    )


def backend(
    name: str, requests: int, durations: list[tuple[float, float, int]] | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "admin": "ready",
        "health": "up",
        "effective_weight": 1,
        "requests": requests,
        "outstanding": 4,
        "connections": 5,
        "durations": durations or [],
    }


@pytest.mark.parametrize(
    ("buckets", "part", "wanted"),
    [
        ([], 0.5, None),
        ([(0.0, 1.0, 10)], 0.5, 0.5),
        ([(0.0, 1.0, 50), (1.0, 2.0, 50)], 0.5, 1.0),
        ([(0.0, 1.0, 99), (4.0, 5.0, 1)], 0.99, 1.0),
        ([(0.0, 1.0, 98), (4.0, 6.0, 2)], 0.99, 5.0),
        ([(2.0, 3.0, 1)], 0.99, 2.99),
    ],
)
def test_percentile(buckets: list[tuple[float, float, int]], part: float, wanted: float | None) -> None:
    assert percentile(buckets, part) == pytest.approx(wanted)


def test_between_two_looks() -> None:
    before = status(10, backend("a", 100, [(0.0, 0.1, 100)]), dropped_messages={"x": 3})
    after = status(
        12, backend("a", 300, [(0.0, 0.1, 100), (1.0, 2.0, 200)]), dropped_messages={"x": 3, "y": 4}
    )
    rates = between(before, after)
    assert (rates["messages_per_second"], rates["dropped_per_second"], rates["clients"]) == (100, 2, 5)
    (only,) = rates["backends"]
    assert only["p50"] == pytest.approx(1.5), "the answers of before are not counted again"
    assert only["p99"] == pytest.approx(1.99)


def test_without_messages() -> None:
    same = status(10, backend("a", 100, [(0.0, 0.1, 100)]))
    (only,) = between(same, {**same, "uptime_seconds": 11.0})["backends"]
    assert (only["messages_per_second"], only["p50"], only["p99"]) == (0, None, None)


def test_what_begins_in_between_counts_from_0() -> None:
    before = status(10, backend("a", 100), backend("c", 50))
    after = status(12, backend("b", 20), backend("c", 6))
    assert [each["messages_per_second"] for each in between(before, after)["backends"]] == [10, 3]
    restarted = between(status(10, backend("a", 100)), status(2, backend("a", 120)))
    assert restarted["messages_per_second"] == 60


def test_picture() -> None:
    before = status(10, backend("a", 0))
    after = status(
        11, backend("a", 12345, [(0.0001, 0.0002, 12345)]), ready=False, not_ready_because=["draining"]
    )
    lines = picture(after, between(before, after))
    assert lines[0] == "sockmap-lb 0, test.yaml, up 11 s: serving, not ready (draining)"
    assert lines[1] == "12,345 messages/s, 0 dropped/s, 5 clients, 2.93 KiB buffered"
    assert lines[4].split() == ["workers/a", "ready", "up", "1", "12345", "4", "150", "us", "199", "us", "5"]
