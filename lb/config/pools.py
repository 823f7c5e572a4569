"""The `pools` section: backends, and how messages spread over them."""

from lb.config.checks import Asking, Check, read_health_check
from lb.config.ejection import Counting, read_ejection
from lb.config.hashing import MOST_HASHED, read_key, read_max_load
from lb.config.model import (
    LOCAL_NETWORKS,
    Address,
    Backend,
    Balance,
    Connect,
    Connections,
    Ejection,
    HostName,
    Name,
    Pool,
    ProxyVersion,
    Resolve,
    Timeouts,
    Workers,
)
from lb.config.names import MAX_NAMES, read_backend_address, read_resolve, refuse_resolve
from lb.config.scalars import (
    choice,
    duration,
    integer,
    percent,
    read_duration,
    read_listen_address,
    read_name,
    read_networks,
)
from lb.config.value import Section, Value, refuse_duplicates, show
from lb.routing import MAX_LOAD, Hash

_MAX_POOLS = 63  # the kernel's table has 64 places, and the self-test needs one
_MAX_BACKENDS = 1024
MAX_SHARED = 32  # connections of a pool that all clients share: the kernel program's choice is a bounded loop

_read_balance = choice(Balance)
_read_connections = choice(Connections)
_read_connect = choice(Connect)
_read_send_proxy = choice(ProxyVersion)
_read_per_backend = integer(1, 32, "the kernel program looks at no more than 32 connections of a pool")
_read_most_workers = integer(1, MAX_SHARED, "the kernel program looks at no more connections of a pool")
_read_in_flight = integer(1, 16384, "half of all 16-bit ids are in use then")
_read_weight = integer(0, 256, "0 takes no new messages; the kernel's turns are too coarse for more than 256")
_read_batch = integer(1, 64, "the kernel program measures at most 64 messages at once")
_read_max_outstanding = integer(1, 1_000_000, "none at all is a weight of 0, more is no limit")
_read_priority = integer(0, 255, "a level below another one; more of them than that nobody tells apart")
_read_panic_threshold = percent("0 waits until a whole level is down, 100 until one of its backends is")
_read_slow_start = duration(0.1, 3600.0, "less is over before a message is, more is a lower weight")
# TCP sends a lost segment again after 200 ms or more, and by itself gives up after about 15 minutes.
_read_unacknowledged = duration(0.5, 900.0, "less takes one lost segment for a dead peer, more is no limit")


class Pools:
    """The pools of a file.

    `names` has those of pools with mistakes too, so that these are not reported again at the listeners; None
    says that a name is missing. `asking` is what the health checks of pools send, `counting` whether
    their error responses count; `shared` are those whose clients share their connections, `keyed` those where
    what a message says decides where it goes.
    """

    def __init__(self, value: Value, taken: dict[Address, str]) -> None:
        """`taken` says who has an address."""
        self._taken = taken
        self.pools: list[Pool] = []
        self.asking: dict[str, Asking] = {}
        self.counting: dict[str, Counting] = {}
        self._backends = self._names = 0
        items = value.items("a list of pools")
        if len(items) > _MAX_POOLS:
            value.fail(f"has {len(items)} pools (the kernel's table holds {_MAX_POOLS})", "remove some")
        refuse_duplicates(items, "name")
        names = [name.node.value for item in items if (name := item.peek("name"))]
        self.names = frozenset(names) if items and len(names) == len(items) else None
        for item in items:
            pool = self._read_pool(item)
            if pool is not None:
                self.pools.append(pool)
        self.shared = frozenset(p.name for p in self.pools if p.connections is Connections.SHARED)
        self.keyed = frozenset(p.name for p in self.pools if p.hash is not None and p.hash.by_message)

    def _read_pool(self, value: Value) -> Pool | None:
        section = value.section(
            "name",
            "backends",
            "balance",
            "hash",
            "max_load",
            "connections",
            "connect",
            "connections_per_backend",
            "max_in_flight",
            "batch",
            "health_check",
            "ejection",
            "timeouts",
            "panic_threshold",
            "slow_start",
            "accept",
            "allow",
            "max_workers",
            "send_proxy",
            "resolve",
        )
        if section is None:
            return None
        name = section.required("name", read_name, "workers")
        resolve = section.optional("resolve", read_resolve, Resolve())
        servers: list[Backend | Name] | None = []
        if "backends" in section.entries or "accept" not in section.entries:
            example = "[{name: a, address: 10.0.0.11:9000}]"
            servers = section.required(
                "backends", lambda entry: self._read_backends(entry, resolve.max_addresses), example
            )
        names = tuple(server for server in servers or () if isinstance(server, Name))
        if servers and not names:
            refuse_resolve(section)
        most = sum(resolve.max_addresses if isinstance(server, Name) else 1 for server in servers or ())
        workers = self._read_workers(section)
        balance = section.optional("balance", _read_balance, Balance.LEAST_OUTSTANDING)
        connections = section.optional("connections", _read_connections, Connections.PER_CLIENT)
        connect = section.optional("connect", _read_connect, Connect.EAGER)
        batch = section.optional("batch", _read_batch, 64)
        unchecked: Check = (None, None)
        health_check, asking = section.optional("health_check", read_health_check, unchecked)
        uncounted: tuple[Ejection | None, Counting | None] = (None, None)
        ejection, counting = section.optional("ejection", read_ejection, uncounted)
        timeouts = section.optional("timeouts", _read_timeouts, Timeouts())
        default = Pool("", ())
        each = section.optional("connections_per_backend", _read_per_backend, default.connections_per_backend)
        in_flight = section.optional("max_in_flight", _read_in_flight, default.max_in_flight)
        if connections is not Connections.SHARED:
            _refuse_sharing(section)
        else:
            _refuse_owning(section)
            _check_count(section, most * each, workers, named=bool(names))
        panic_threshold = section.optional("panic_threshold", _read_panic_threshold, 50)
        slow_start = section.optional("slow_start", _read_slow_start, 0.0)
        hashed = _read_hash(section, balance)
        send_proxy = section.optional("send_proxy", _read_send_proxy, None)
        if name is None or servers is None:
            return None
        if asking is not None:
            self.asking[name] = asking
        if counting is not None:
            self.counting[name] = counting
        if balance is Balance.HASH:
            _check_hashed(section, most, workers, named=bool(names))
        return Pool(
            name,
            tuple(server for server in servers if isinstance(server, Backend)),
            workers,
            balance,
            connections,
            connect,
            each,
            in_flight,
            batch,
            health_check,
            timeouts,
            panic_threshold=panic_threshold,
            slow_start=slow_start,
            hash=hashed,
            send_proxy=send_proxy,
            names=names,
            resolve=resolve,
            ejection=ejection,
        )

    def _read_workers(self, section: Section) -> Workers | None:
        if "accept" not in section.entries:
            for key in ("allow", "max_workers"):
                if key in section.entries:
                    section.entries[key].fail("is for workers only", "add `accept: 0.0.0.0:7900`")
            return None
        address = section.required("accept", self._read_address, "0.0.0.0:7900")
        allow = section.optional("allow", read_networks, LOCAL_NETWORKS)
        most = section.optional("max_workers", _read_most_workers, 16)
        if address is None:
            return None
        workers = Workers(address, allow, most)
        self._backends += workers.numbers
        return workers

    def _read_address(self, value: Value) -> Address | None:
        address = read_listen_address(value)
        if address is None or address.port == 0:
            return address
        if address in self._taken:
            problem = f"{show(str(address))} is taken by {self._taken[address]}"
            value.fail(problem, "use another address or port")
            return None
        self._taken[address] = value.path
        return address

    def _read_backends(self, value: Value, addresses: int) -> list[Backend | Name] | None:
        """`addresses`: that one name may have."""
        items = value.items("a list of backends with name and address")
        refuse_duplicates(items, "name")
        servers = [server for item in items if (server := _read_backend(item))]
        names = sum(isinstance(server, Name) for server in servers)
        before, self._backends = self._backends, self._backends + len(items) + names * (addresses - 1)
        if before <= _MAX_BACKENDS < self._backends:
            value.fail(
                f"brings all pools to {self._backends} backends (the kernel's table holds {_MAX_BACKENDS})",
                "remove some",
            )
        if self._names <= MAX_NAMES < self._names + names:
            value.fail(
                f"brings all pools to {self._names + names} names (each may keep threads waiting for the"
                f" resolver; at most {MAX_NAMES})",
                "write addresses, or one name for several",
            )
        self._names += names
        if not items or len(servers) < len(items):
            return None
        if all(server.weight == 0 for server in servers):
            value.fail(
                "has only weights of 0, so no message can be sent", "give one backend a weight above 0"
            )
        return servers


def _refuse_sharing(section: Section) -> None:
    """Note what is there although clients do not share connections."""
    for key in ("connections_per_backend", "max_in_flight", "accept", "allow", "max_workers"):
        if key in section.entries:
            section.entries[key].fail("is for shared connections only", "add `connections: shared`")


def _refuse_owning(section: Section) -> None:
    """Note what is there although no connection belongs to one client."""
    meanings = {
        "connect": "says when a client's own connections are made",
        "send_proxy": "names the one client of a connection",
    }
    for key, meaning in meanings.items():
        if key in section.entries:
            section.entries[key].fail(
                f"{meaning}, but this pool shares connections", "remove it, or use `connections: per_client`"
            )


def _check_count(section: Section, dialled: int, workers: Workers | None, *, named: bool) -> None:
    """Note that there are too many shared connections."""
    count = dialled + (workers.most if workers is not None else 0)
    if count > MAX_SHARED:
        key = "connections_per_backend" if workers is None else "max_workers"
        section.entries.get(key, section.value).fail(
            f"makes {count} connections (of a pool at most {MAX_SHARED})",
            f"use fewer for each backend{' or `resolve.max_addresses`' if named else ''}, or several pools",
        )


def _check_hashed(section: Section, most: int, workers: Workers | None, *, named: bool) -> None:
    """Note why the backends cannot be in one table."""
    if workers is not None:
        section.entries["accept"].fail(
            "brings backends that the table of `balance: hash` does not have", "use another balance"
        )
    if most > MOST_HASHED:
        section.entries["backends"].fail(
            f"{'may have' if named else 'has'} {most} backends (a client has at most {MOST_HASHED}"
            " connections, and each key must find its backend from all clients)",
            f"remove some, {'lower `resolve.max_addresses`, ' if named else ''}or use another balance",
        )


def _read_backend(value: Value) -> Backend | Name | None:
    section = value.section("name", "address", "weight", "max_outstanding", "priority")
    if section is None:
        return None
    name = section.required("name", read_name, "a")
    address = section.required("address", read_backend_address, "10.0.0.11:9000")
    weight = section.optional("weight", _read_weight, 1)
    max_outstanding = section.optional("max_outstanding", _read_max_outstanding, None)
    priority = section.optional("priority", _read_priority, 0)
    if name is None or address is None:
        return None
    if isinstance(address, Address):
        return Backend(name, address, weight, max_outstanding, priority=priority)
    assert isinstance(address, HostName)
    return Name(name, address, weight, max_outstanding, priority)


def _read_hash(section: Section, balance: Balance) -> Hash | None:
    if balance is not Balance.HASH:
        for key in ("hash", "max_load"):
            if key in section.entries:
                section.entries[key].fail(
                    f"has no effect with `balance: {balance}`", "write `balance: hash`, or remove it"
                )
        return None
    by = section.required("hash", read_key, "client-address")
    max_load = None if section.off("max_load") else section.optional("max_load", read_max_load, MAX_LOAD)
    return None if by is None else Hash(by, max_load)


def _read_timeouts(value: Value) -> Timeouts | None:
    section = value.section(
        "connect", "idle", "drain", "half_message", "unacknowledged", "queue", "response", "slow_client"
    )
    if section is None:
        return None
    default = Timeouts()
    return Timeouts(
        connect=section.optional("connect", read_duration, default.connect),
        idle=section.optional("idle", read_duration, default.idle),
        drain=section.optional("drain", read_duration, default.drain),
        half_message=section.optional("half_message", read_duration, default.half_message),
        unacknowledged=section.optional("unacknowledged", _read_unacknowledged, default.unacknowledged),
        queue=section.optional("queue", read_duration, default.queue),
        response=section.optional("response", read_duration, default.response),
        slow_client=section.optional("slow_client", read_duration, default.slow_client),
    )
