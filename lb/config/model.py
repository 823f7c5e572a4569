"""A configuration as the program sees it: immutable, in seconds and bytes, and valid."""

import socket
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from lb.framing import Framing, Match
from lb.routing import Hash
from lb.rules import Rule, pools_of


class Balance(StrEnum):
    """How a pool picks the backend of a message."""

    ROUND_ROBIN = "round_robin"
    LEAST_OUTSTANDING = "least_outstanding"
    RANDOM = "random"
    HASH = "hash"


class Connections(StrEnum):
    """Who shares a connection to a backend."""

    PER_CLIENT = "per_client"
    SHARED = "shared"


class Connect(StrEnum):
    """When a client's own connections to backends are made."""

    EAGER = "eager"  # before its first message
    ON_DEMAND = "on_demand"  # when a message needs one


class Target:
    """Where a backend is: an address or a host name, and a port."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Address(Target):
    """A TCP endpoint; port 0 lets the kernel choose."""

    host: IPv4Address | IPv6Address
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        """The address family of its sockets."""
        return socket.AF_INET6 if self.host.version == 6 else socket.AF_INET

    @property
    def sockaddr(self) -> tuple[str, int]:
        """As `socket.bind` and `socket.connect` take it."""
        return (str(self.host), self.port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.host.version == 6 else str(self.host)
        return f"{host}:{self.port}"


class Family(StrEnum):
    """Which addresses of a name count."""

    AUTO = "auto"  # IPv4, or IPv6 if it has none: a server that has both is one backend
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    BOTH = "both"


Networks = tuple[IPv4Network | IPv6Network, ...]

LOCAL_NETWORKS: Networks = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


def within(networks: Networks, host: str) -> bool:
    """Whether the address of a peer, as a socket says it, is in one of the networks."""
    address = ip_address(host.partition("%")[0])
    return any(address in network for network in networks)


@dataclass(frozen=True, slots=True)
class Admin:
    """Where metrics, state and the dashboard are served; None: nowhere."""

    address: Address | None = Address(IPv4Address("127.0.0.1"), 9901)


@dataclass(frozen=True, slots=True)
class Runtime:
    """Who serves (None: whoever starts the process), the most sockets, and the most bytes waiting for one.

    `shutdown_delay`: seconds in which new clients are still served after SIGTERM, though it is not ready.
    `watch`: whether the file is reloaded when its content changes.
    """

    user: str | None = "nobody"
    max_connections: int = 65536
    buffer_budget: int = 1 << 20
    shutdown_delay: float = 0.0
    watch: bool = False


@dataclass(frozen=True, slots=True)
class Tcp:
    """What all connections, of clients and to backends, ask of TCP.

    `congestion`: the congestion control algorithm, by the kernel's name; None: the machine's.
    """

    congestion: str | None = None


class ProxyVersion(StrEnum):
    """Of the PROXY protocol: a line of text, or binary."""

    V1 = "v1"
    V2 = "v2"


class Over(StrEnum):
    """What becomes of messages over a rate."""

    WAIT = "wait"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `burst` messages at once, and then as many as come in a second."""

    messages_per_second: int
    burst: int
    over: Over = Over.WAIT


@dataclass(frozen=True, slots=True)
class Limits:
    """The most clients that a listener serves at once, in all and from one address; None: any number.

    `idle`: how long a client may send nothing, in seconds; None: as its pool says.
    `rate`, `rate_per_address`: of messages, of all clients and of those from one address; None: any.
    """

    max_clients: int | None = None
    max_clients_per_address: int | None = None
    idle: float | None = None
    rate: Rate | None = None
    rate_per_address: Rate | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that takes clients, the framing they speak, and the name of the pool that serves them.

    `trusted`: networks of the proxies in front, which say in a PROXY header whose connection it is; None:
    clients connect by themselves.
    `rules` send messages elsewhere, or deny them.
    """

    name: str
    address: Address
    framing: Framing
    pool: str
    limits: Limits = Limits()
    trusted: Networks | None = None
    rules: tuple[Rule, ...] = ()

    @property
    def pools(self) -> tuple[str, ...]:
        """The names of all pools that its messages may go to, its own first."""
        return tuple(dict.fromkeys([self.pool, *pools_of(self.rules)]))


@dataclass(frozen=True, slots=True)
class HostName(Target):
    """A host by name, and the port at each of its addresses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Backend:
    """A server that answers requests; weight 0 gives it no new ones.

    `max_outstanding`: the most requests of all clients that wait for its responses; None: any number.
    `priority`: its level; those of higher numbers are reserves (:func:`lb.balance.last_level`).
    """

    name: str
    address: Address
    weight: int = 1
    max_outstanding: int | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Name:
    """Servers by name: one at each address of the host, and all with what is said here of one."""

    name: str
    target: HostName
    weight: int = 1
    max_outstanding: int | None = None
    priority: int = 0

    def at(self, host: IPv4Address | IPv6Address) -> Backend:
        """Return the server at an address. No other backend has its name, in which no `@` may be."""
        return Backend(
            f"{self.name}@{host}",
            Address(host, self.target.port),
            self.weight,
            self.max_outstanding,
            self.priority,
        )


@dataclass(frozen=True, slots=True)
class Resolve:
    """How the names of a pool are looked up.

    `interval`: from one look to the next, and `timeout`: for one, in seconds; `max_addresses`: of a name that
    are used.
    """

    interval: float = 30.0
    timeout: float = 5.0
    family: Family = Family.AUTO
    max_addresses: int = 16


@dataclass(frozen=True, slots=True)
class Workers:
    """Backends that connect to the balancer: where, from which networks, and how many connections at once."""

    address: Address
    allow: Networks = LOCAL_NETWORKS
    most: int = 16

    @property
    def numbers(self) -> int:
        """Of the backends that they can be: that of one that has just left is not free at once."""
        return 2 * self.most


@dataclass(frozen=True, slots=True)
class Ping:
    """A request that shows by its response whether a backend works, and what the response must say."""

    framing: Framing
    request: bytes
    expect: Match | None = None


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How often to try a backend, in seconds, and how many results in a row change its state.

    `jitter`: percent by which an interval is shorter or longer. `fast_interval`: while results contradict the
    state, and are too few yet. `ping`: what it has to answer; None: that it can be connected to is enough.
    """

    interval: float = 2.0
    timeout: float = 1.0
    rise: int = 2
    fall: int = 3
    jitter: int = 10
    fast_interval: float = 1.0
    ping: Ping | None = None


@dataclass(frozen=True, slots=True)
class Ejection:
    """How many failures in a row take a backend out, for how many seconds, and how many backends at most.

    The seconds grow by `base_ejection` each time, up to `max_ejection`. `error_responses`: whether responses
    that the protocol calls errors are failures.
    """

    consecutive_failures: int = 5
    base_ejection: float = 30.0
    max_ejection: float = 300.0
    max_ejection_percent: int = 50
    error_responses: bool = False


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds.

    `unacknowledged`: for a peer's TCP to acknowledge anything. On shared connections, `response`: for the
    response to a request, and `slow_client`: for a client that does not read while others wait.
    """

    connect: float = 2.0
    idle: float = 600.0
    drain: float = 30.0
    half_message: float = 10.0
    unacknowledged: float = 60.0
    queue: float = 5.0
    response: float = 30.0
    slow_client: float = 1.0


@dataclass(frozen=True, slots=True)
class Pool:
    """Backends that answer the same requests; without a health check they are taken as alive.

    `names`: more of them, by name; how these are looked up, `resolve` says.
    `workers`: that connect by themselves; there may be no others then.

    `connect`: when a client's own connections are made. Shared ones, `connections_per_backend` of them, carry
    the messages of all clients, and each has at most `max_in_flight` requests without a response.

    `panic_threshold`: percent of a level's weight that must be up, or the next level serves too.
    `slow_start`: seconds in which a backend that comes (back) up gets to its weight; 0: at once.
    `hash`: what a message is hashed by, with `balance: hash` and with no other.
    `send_proxy`: the PROXY header that tells backends whose connection it is; None: none.
    `ejection`: how failures of messages take a backend out; None: they do not.
    """

    name: str
    backends: tuple[Backend, ...]
    workers: Workers | None = None
    balance: Balance = Balance.LEAST_OUTSTANDING
    connections: Connections = Connections.PER_CLIENT
    connect: Connect = Connect.EAGER
    connections_per_backend: int = 2
    max_in_flight: int = 1024
    batch: int = 64
    health_check: HealthCheck | None = None
    timeouts: Timeouts = Timeouts()
    panic_threshold: int = 50
    slow_start: float = 0.0
    hash: Hash | None = None
    send_proxy: ProxyVersion | None = None
    ejection: Ejection | None = None
    names: tuple[Name, ...] = ()
    resolve: Resolve = Resolve()

    @property
    def most_backends(self) -> int:
        """How many there are when each name has all the addresses that it may have; without workers."""
        return len(self.backends) + len(self.names) * self.resolve.max_addresses


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; every listener's pool is there."""

    admin: Admin
    runtime: Runtime
    listeners: tuple[Listener, ...]
    pools: tuple[Pool, ...]
    tcp: Tcp = Tcp()

    def pool(self, name: str) -> Pool:
        """Return the pool of this name; raises KeyError."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(name)
