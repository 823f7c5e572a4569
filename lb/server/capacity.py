"""How much the maps are loaded for: what the first configuration needs, and room for what comes later.

Maps keep the size that they are loaded with. Names may resolve to more backends, and a reload may bring
more listeners, pools and backends: twice what the first file has always finds room, and so does what is
small. What needs more is refused then, and a restart is the remedy.
"""

from lb import abi, config
from lb.dataplane import Sizes, rules, selftest, table_size
from lb.server.members import SHARED_SEATS

# At least so many more than the first file has. They cost little memory: of a backend, 1 KiB for each CPU.
_MORE_LISTENERS = 32
_MORE_BACKENDS = 64
_MORE_ROWS = abi.MAX_POOLS * SHARED_SEATS + 1024  # those of a listener stand side by side
_MORE_SHARED_POOLS = 8
_MORE_HASHED_POOLS = 2
_MORE_RATES = 64
_MORE_TESTS = 64 * 256  # as if each of 64 listeners had 64 rules of a few tests; 48 bytes each
_MORE_PLACES = 16 * table_size(config.Pool("", ()).max_in_flight)


def sizes(settings: config.Config, connections: int) -> Sizes:
    """For a first configuration, and the self-test."""
    listeners = len(settings.listeners)
    backends = sum(map(_backends, settings.pools))
    rows = sum(_rows(settings, listener) for listener in settings.listeners)
    shared = [pool for pool in settings.pools if pool.connections is config.Connections.SHARED]
    return Sizes(
        connections=max(connections, selftest.SLOTS),  # which come back before the first client does
        framings=_room(listeners, _MORE_LISTENERS) + selftest.FRAMINGS,
        backends=max(min(_room(backends, _MORE_BACKENDS), abi.MAX_BACKENDS), backends) + selftest.BACKENDS,
        traffic_rows=_room(rows, _MORE_ROWS) + selftest.ROWS,
        max_message=max(listener.framing.max_message for listener in settings.listeners),
        shared_routes=_room(len(shared), _MORE_SHARED_POOLS) + selftest.ROUTES,
        flights=_room(sum(map(_places, shared)), _MORE_PLACES) + selftest.FLIGHTS,
        rates=_rates(settings, connections),
        hashed_pools=_room(sum(pool.hash is not None for pool in settings.pools), _MORE_HASHED_POOLS),
        rules=_room(listeners, _MORE_LISTENERS),
        tests=_tests(settings),
        heads=any(listener.framing.error_reply is not None for listener in settings.listeners),
    )


def _room(needed: int, more: int) -> int:
    return max(2 * needed, needed + more)


def _backends(pool: config.Pool) -> int:
    return pool.most_backends + (pool.workers.numbers if pool.workers is not None else 0)


def _rows(settings: config.Config, listener: config.Listener) -> int:
    """Rows of the traffic counters for a listener; of shared pools those in between have some too."""
    names = [pool.name for pool in settings.pools]
    places = [names.index(name) for name in listener.pools]
    if settings.pool(listener.pool).connections is config.Connections.SHARED:
        return SHARED_SEATS * (max(places) - min(places) + 1)
    return sum(_backends(settings.pools[place]) for place in places)


def _tests(settings: config.Config) -> int:
    """Tests that rules are made of."""
    return _room(sum(rules.count(listener.rules) for listener in settings.listeners), _MORE_TESTS)


def _places(pool: config.Pool) -> int:
    """Places for the requests on the shared upstreams of a pool."""
    upstreams = pool.most_backends * pool.connections_per_backend
    upstreams += pool.workers.most if pool.workers is not None else 0
    return upstreams * table_size(pool.max_in_flight)


def _rates(settings: config.Config, connections: int) -> int:
    limits = [listener.limits for listener in settings.listeners]
    rates = _room(sum(limit.rate is not None for limit in limits), _MORE_RATES)
    # Each client may have an address of its own, and as many that have left are remembered.
    return rates + (2 * connections if any(limit.rate_per_address for limit in limits) else 0)
