"""The `listeners` section: addresses, and the framing and pool behind each."""

from collections.abc import Mapping
from types import MappingProxyType

from lb.config.model import LOCAL_NETWORKS, Address, Limits, Listener, Networks, Over, Pool, Rate
from lb.config.protocols import Protocols
from lb.config.rules import Surroundings, read_rules
from lb.config.scalars import (
    choice,
    integer,
    read_duration,
    read_flag,
    read_listen_address,
    read_name,
    read_networks,
)
from lb.config.value import Section, Value, either, refuse_duplicates, show, suggest
from lb.framing import Framing, Ordering, Responses
from lb.rules import Rule, pools_of

_MAX_LISTENERS = 64
_DEFAULT_PROTOCOL = "length-prefixed"
_SHARED_WIDTHS = (2, 4, 8)  # of ids that the kernel program can exchange

_read_clients = integer(1, 1 << 20, "a listener for nobody is better removed; no sockmap holds more")
_read_rate_number = integer(1, 1_000_000, "none at all is a listener less, more is no limit")
_read_over = choice(Over)


class Listeners:
    """The listeners of a file.

    `pools` are the names that may be used, None if nobody knows them; `taken` says who has an address;
    `shared` are the pools whose clients share their connections, `keyed` those where what a message says
    decides where it goes, `found` those without mistakes.
    """

    def __init__(
        self,
        value: Value,
        protocols: Protocols,
        pools: frozenset[str] | None,
        taken: dict[Address, str],
        shared: frozenset[str],
        keyed: frozenset[str],
        found: Mapping[str, Pool] = MappingProxyType({}),
    ) -> None:
        self.listeners: list[Listener] = []
        self._protocols = protocols
        self._pools = pools
        self._taken = taken
        self._keyed = keyed
        self._found = found
        self._shared: dict[str, Framing | None] = dict.fromkeys(shared)
        items = value.items("a list of listeners")
        if len(items) > _MAX_LISTENERS:
            value.fail(
                f"has {len(items)} listeners (each has counters for each backend, {_MAX_LISTENERS} fit)",
                "remove some",
            )
        refuse_duplicates(items, "name")
        for item in items:
            listener = self._read_listener(item)
            if listener is not None:
                self.listeners.append(listener)

    def _read_listener(self, value: Value) -> Listener | None:
        section = value.section(
            "name", "address", "protocol", "pool", "rules", "limits", "proxy_protocol", "trusted"
        )
        if section is None:
            return None
        name = section.required("name", read_name, "rpc")
        address = section.required("address", self._read_address, "0.0.0.0:7000")
        default = self._protocols.framings[_DEFAULT_PROTOCOL]
        framing = section.optional("protocol", self._read_protocol, default)
        pool = self._read_pool(section)
        limits = section.optional("limits", _read_limits, Limits())
        trusted = _read_trusted(section)
        around = Surroundings(framing, pool, self._found, self._pools)
        no_rules: tuple[Rule, ...] = ()
        rules = section.optional("rules", read_rules(around), no_rules)
        for its in dict.fromkeys([*([pool] if pool is not None else []), *pools_of(rules)]):
            if its in self._shared:
                self._check_shared(section.entries.get("protocol", value), framing, its)
            if its in self._keyed and framing.responses is Responses.ANY:
                section.entries.get("protocol", value).fail(
                    _no_key(framing, its), "use `hash: client-address`"
                )
        if name is None or address is None or pool is None:
            return None
        return Listener(name, address, framing, pool, limits, trusted, rules)

    def _check_shared(self, value: Value, framing: Framing, pool: str) -> None:
        """Note why a framing cannot be used where clients share connections."""
        before = self._shared[pool]
        self._shared[pool] = before or framing
        if framing.id is None or framing.id.width not in _SHARED_WIDTHS:
            what = "has no id" if framing.id is None else f"has an id of {framing.id.width} bytes"
            problem = f"{show(framing.name)} {what}, but pool {pool} shares connections"
            widths = either([str(width) for width in _SHARED_WIDTHS])
            value.fail(problem, f"use a protocol with an id of {widths} bytes, or `connections: per_client`")
        elif framing.ordering is Ordering.FIFO:
            problem = f"{show(framing.name)} is `ordering: fifo`, but pool {pool} shares connections"
            value.fail(problem, "use `connections: per_client`")
        elif before is not None and before != framing:
            problem = f"pool {pool} shares connections, and speaks {show(before.name)} already"
            value.fail(problem, "use another pool for each protocol")

    def _read_address(self, value: Value) -> Address | None:
        address = read_listen_address(value)
        if address is None or address.port == 0:
            return address
        if address in self._taken:
            value.fail(
                f"{show(str(address))} is taken by {self._taken[address]}", "use another address or port"
            )
            return None
        self._taken[address] = value.path
        return address

    def _read_protocol(self, value: Value) -> Framing | None:
        name = value.text("the name of a protocol")
        names = self._protocols.names
        if name is not None and names is not None and name not in names:
            value.fail(f"unknown protocol {show(name)}", suggest(name, names, "protocols"))
        return None if name is None else self._protocols.framings.get(name)

    def _read_pool(self, section: Section) -> str | None:
        names = self._pools
        if "pool" not in section.entries:
            if names is None:
                return ""
            if len(names) == 1:
                (only,) = names
                return only
        return section.required("pool", self._known_pool, "NAME, as there are several pools")

    def _known_pool(self, value: Value) -> str | None:
        name = value.text("the name of a pool")
        names = self._pools
        if name is not None and names is not None and name not in names:
            value.fail(f"unknown pool {show(name)}", suggest(name, names, "pools"))
        return name


def _no_key(framing: Framing, pool: str) -> str:
    return (
        f"{show(framing.name)} is `responses: any`, and nobody knows when a message for another backend may"
        f" follow, but pool {pool} hashes what a message says"
    )


def _read_trusted(section: Section) -> Networks | None:
    if section.optional("proxy_protocol", read_flag, default=False):
        return section.optional("trusted", read_networks, LOCAL_NETWORKS)
    if "trusted" in section.entries:
        section.entries["trusted"].fail("is for proxies only", "add `proxy_protocol: true`, or remove it")
    return None


def _read_limits(value: Value) -> Limits | None:
    section = value.section("max_clients", "max_clients_per_address", "idle", "rate", "rate_per_address")
    if section is None:
        return None
    return Limits(
        max_clients=section.optional("max_clients", _read_clients, None),
        max_clients_per_address=section.optional("max_clients_per_address", _read_clients, None),
        idle=section.optional("idle", read_duration, None),
        rate=section.optional("rate", _read_rate, None),
        rate_per_address=section.optional("rate_per_address", _read_rate, None),
    )


def _read_rate(value: Value) -> Rate | None:
    section = value.section("messages_per_second", "burst", "over")
    if section is None:
        return None
    rate = section.required("messages_per_second", _read_rate_number, "1000")
    burst = section.optional("burst", _read_rate_number, rate)
    over = section.optional("over", _read_over, Over.WAIT)
    return None if rate is None or burst is None else Rate(rate, burst, over)
