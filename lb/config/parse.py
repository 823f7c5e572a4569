"""A configuration file to a `Config`, or to all of its mistakes."""

from pathlib import Path

from lb.config.checks import with_pings
from lb.config.document import compose
from lb.config.ejection import with_errors
from lb.config.errors import ErrorLog
from lb.config.listeners import Listeners
from lb.config.model import Admin, Config, Runtime, Tcp
from lb.config.pools import Pools
from lb.config.protocols import Protocols
from lb.config.scalars import duration, integer, read_flag, read_listen_address, read_name, size
from lb.config.units import format_size
from lb.config.value import Value

# What the other limits allow takes less than half of this, and reading so much may take seconds.
_MAX_FILE = 512 << 10


def load(path: Path) -> Config:
    """Read a configuration file; raises ConfigErrors."""
    log = ErrorLog(str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
        if len(raw) <= _MAX_FILE:
            return parse(raw.decode(), str(path))
        log.add(0, "", f"is larger than {format_size(_MAX_FILE)}", "remove what is no configuration")
    except OSError as error:
        log.add(0, "", f"cannot be read: {error.strerror}", "check the path and its permissions")
    except UnicodeDecodeError as error:
        log.add(0, "", f"is not UTF-8 at byte {error.start}", "save it as UTF-8")
    raise log.refusal()


def parse(text: str, source: str) -> Config:
    """Read a configuration from a text that came from `source`; raises ConfigErrors."""
    log = ErrorLog(source)
    root = compose(text, log)
    config = None if root is None else read_config(Value.at(root, "", log))
    if config is None or log:
        raise log.refusal()
    return config


def read_config(value: Value) -> Config | None:
    """Read a whole file; what is wrong is in the log of the value."""
    section = value.section("admin", "runtime", "tcp", "protocols", "listeners", "pools")
    if section is None:
        return None
    admin = section.optional("admin", _read_admin, Admin())
    runtime = section.optional("runtime", _read_runtime, Runtime())
    tcp = section.optional("tcp", _read_tcp, Tcp())
    protocols = Protocols(section.entries.get("protocols"))
    taken = {} if admin.address is None else {admin.address: "admin.address"}
    example = "[{name: workers, backends: [...]}]"
    pools = section.required("pools", lambda entry: Pools(entry, taken), example)
    before = len(value.log)
    listeners = section.required(
        "listeners",
        lambda entry: Listeners(
            entry,
            protocols,
            pools.names if pools else None,
            taken,
            pools.shared if pools else frozenset(),
            pools.keyed if pools else frozenset(),
            {pool.name: pool for pool in pools.pools} if pools else {},
        ),
        "[{name: rpc, address: 0.0.0.0:7000}]",
    )
    if pools is None or listeners is None:
        return None
    checked = tuple(pools.pools)
    if len(value.log) == before:
        checked = with_pings(checked, pools.asking, listeners.listeners)
        checked = with_errors(checked, pools.counting, listeners.listeners)
    return Config(admin, runtime, tuple(listeners.listeners), checked, tcp)


def _read_admin(value: Value) -> Admin | None:
    section = value.section("address")
    if section is None:
        return None
    if section.off("address"):
        return Admin(None)
    return Admin(section.optional("address", read_listen_address, Admin().address))


def _read_runtime(value: Value) -> Runtime | None:
    section = value.section("user", "max_connections", "buffer_budget", "shutdown_delay", "watch")
    if section is None:
        return None
    default = Runtime()
    return Runtime(
        user=None if section.off("user") else section.optional("user", read_name, default.user),
        max_connections=section.optional(
            "max_connections",
            integer(16, 1 << 20, "a client takes two or more; the sockmap is allocated whole at the start"),
            default.max_connections,
        ),
        buffer_budget=section.optional(
            "buffer_budget",
            size(64 << 10, 1 << 30, "less stops a peer at each scheduling delay, more is no bound"),
            default.buffer_budget,
        ),
        shutdown_delay=section.optional(
            "shutdown_delay",
            duration(0.0, 300.0, "who sends clients here looks every few seconds; more only delays restarts"),
            default.shutdown_delay,
        ),
        watch=section.optional("watch", read_flag, default.watch),
    )


def _read_tcp(value: Value) -> Tcp | None:
    section = value.section("congestion")
    if section is None:
        return None
    return Tcp(section.optional("congestion", read_name, Tcp().congestion))
