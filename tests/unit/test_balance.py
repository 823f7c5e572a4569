from collections import Counter
from dataclasses import dataclass

import pytest

from lb.balance import RAMP_STEPS, last_level, subset, warmth


@dataclass(frozen=True)
class Server:
    name: str
    weight: int = 1


SERVERS = [Server(f"s{number}") for number in range(100)]


def test_a_small_pool_is_used_whole() -> None:
    assert subset(SERVERS[:32], client=1, size=32) == SERVERS[:32]


def test_weight_zero_is_left_out() -> None:
    assert subset([Server("a"), Server("b", 0)], client=1, size=32) == [Server("a")]


def test_a_client_keeps_its_subset() -> None:
    assert subset(SERVERS, client=7, size=32) == subset(list(reversed(SERVERS)), client=7, size=32)


def test_only_what_must_change_changes() -> None:
    for client in range(50):
        before = subset(SERVERS, client, 32)
        gone = before[5]
        after = subset([server for server in SERVERS if server is not gone], client, 32)
        assert len(set(before) - set(after)) == 1
        assert gone not in after


def test_subsets_follow_weights_over_many_clients() -> None:
    servers = [Server(f"s{number}", 1 + (number < 20)) for number in range(100)]
    chosen: Counter[int] = Counter()
    for client in range(3000):
        for server in subset(servers, client, 8):
            chosen[server.weight] += 1
    # Twice as often, but for what it takes away that nobody is chosen twice by one client.
    heavy, light = chosen[2] / 20, chosen[1] / 80
    assert 1.8 < heavy / light < 2.1


@dataclass(frozen=True)
class Member:
    priority: int
    usable: bool = True
    weight: int = 1


def up(level: int, count: int, *, of: int) -> list[Member]:
    return [Member(level, number < count) for number in range(of)]


@pytest.mark.parametrize(
    ("pool", "threshold", "last"),
    [
        (up(0, 3, of=3), 50, 0),
        (up(0, 0, of=3), 50, 0),  # there is no other
        (up(0, 4, of=4) + up(1, 2, of=2), 50, 0),
        (up(0, 2, of=4) + up(1, 2, of=2), 50, 0),  # exactly the threshold is enough
        (up(0, 1, of=4) + up(1, 2, of=2), 50, 1),
        (up(0, 0, of=4) + up(1, 2, of=2), 50, 1),
        (up(0, 1, of=4) + up(1, 1, of=4) + up(2, 1, of=1), 50, 2),  # each level is looked at for itself
        (up(0, 1, of=4) + up(1, 2, of=4) + up(2, 1, of=1), 50, 1),
        (up(0, 0, of=1) + up(5, 1, of=1), 50, 5),  # numbers may be left out
        (up(2, 1, of=1) + up(0, 1, of=1), 50, 0),  # their order is not that of the file
        (up(0, 1, of=4) + up(1, 1, of=1), 0, 0),  # 0: only when all are down
        (up(0, 0, of=4) + up(1, 1, of=1), 0, 1),
        (up(0, 4, of=4) + up(1, 1, of=1), 100, 0),  # 100: as soon as one is
        (up(0, 3, of=4) + up(1, 1, of=1), 100, 1),
        ([Member(0, weight=9), Member(0, usable=False), Member(1)], 90, 0),  # it is weight that counts
        ([Member(0, weight=9), Member(0, usable=False), Member(1)], 91, 1),
        ([Member(0, weight=0), Member(1)], 0, 1),  # one without weight serves nobody
    ],
)
def test_levels(pool: list[Member], threshold: int, last: int) -> None:
    assert last_level(pool, threshold) == last


def test_a_backend_warms_up_linearly() -> None:
    seen = [warmth(10 * step / RAMP_STEPS, 10) for step in range(RAMP_STEPS + 3)]

    assert seen == pytest.approx([min(1, 0.05 + 0.95 * step / RAMP_STEPS) for step in range(RAMP_STEPS + 3)])
    assert seen[RAMP_STEPS] == 1
    assert warmth(9.999, 10) < 1
    assert warmth(0, 0) == 1, "it is switched off"
