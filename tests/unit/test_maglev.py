"""Tables: shares follow weights, and few keys move."""

import hashlib
from collections import Counter
from dataclasses import dataclass

import pytest

from lb import maglev
from lb.routing import key_hash


@dataclass(frozen=True)
class Server:
    name: str
    weight: int = 1


SEVEN = [Server(f"s{weight}", weight) for weight in range(1, 8)]
KEYS = [maglev.place(key_hash(b"user-%d" % number)) for number in range(100_000)]


def owners(servers: list[Server]) -> list[Server]:
    """Whose each of the keys is."""
    table = maglev.table(servers)
    return [servers[table[place]] for place in KEYS]


def test_shares_of_the_table_follow_the_weights() -> None:
    places = Counter(maglev.table(SEVEN))
    assert places.total() == maglev.PLACES
    for index, server in enumerate(SEVEN):
        assert abs(places[index] - maglev.PLACES * server.weight / 28) < 2


def test_shares_of_the_keys_follow_the_weights() -> None:
    """Within 3 % of the share."""
    keys = Counter(owners(SEVEN))
    for server in SEVEN:
        assert keys[server] / len(KEYS) == pytest.approx(server.weight / 28, rel=0.03)


@pytest.mark.parametrize("gone", SEVEN, ids=lambda server: server.name)
def test_without_one_backend_few_keys_of_the_others_move(gone: Server) -> None:
    before = owners(SEVEN)
    after = owners([server for server in SEVEN if server is not gone])
    moved = sum(old is not new for old, new in zip(before, after, strict=True) if old is not gone)
    assert gone not in after
    assert moved < 0.01 * len(KEYS)


@pytest.mark.parametrize("gone", SEVEN, ids=lambda server: server.name)
def test_while_one_backend_is_down_only_its_keys_move_and_spread_over_all_others(gone: Server) -> None:
    table = maglev.table(SEVEN)
    heirs: Counter[Server] = Counter()
    for place in KEYS:
        tried = (SEVEN[table[step]] for step in maglev.walk(place))
        first = next(tried)
        if first is gone:
            heirs[next(server for server in tried if server is not gone)] += 1
    for server in SEVEN:
        if server is not gone:
            share = server.weight / (28 - gone.weight)
            assert heirs[server] / heirs.total() == pytest.approx(share, rel=0.15)


def test_a_table_follows_from_names_and_weights_alone() -> None:
    """The same on every machine, and in every version that keeps the promise."""
    assert key_hash(b"sockmap-lb") == 0x8114BEB98D0A548A
    assert hashlib.sha256(maglev.table(SEVEN)).hexdigest().startswith("4a4a46a1a496e624")
    swapped = maglev.table(SEVEN[::-1])
    assert [SEVEN[index].name for index in maglev.table(SEVEN)] == [
        SEVEN[6 - index].name for index in swapped
    ]


def test_weight_zero_has_no_place() -> None:
    assert set(maglev.table([Server("a"), Server("b", 0), Server("c")])) == {0, 2}
    assert maglev.table([Server("a", 0)]) == b""


def test_one_backend_has_every_place() -> None:
    assert set(maglev.table([Server("a", 5)])) == {0}
