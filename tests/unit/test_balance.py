from collections import Counter
from dataclasses import dataclass

from lb.balance import subset


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
