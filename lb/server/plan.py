"""From one configuration to another while clients are served: all of it, or nothing.

:meth:`Plan.prepare` does everything that can fail - finds room in the kernel's tables, binds sockets - beside
what serves, which notices nothing; if something fails, everything is given back. :meth:`Plan.commit` then
cannot fail. The start of the balancer is a plan from nothing.
"""

import asyncio
import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from lb import abi, config
from lb.backends import Backend
from lb.config.changes import Difference, Refusal
from lb.dataplane import MachineError, sockets
from lb.dataplane.rules import Range, encode, to_pool
from lb.events import event
from lb.framing import Framing
from lb.ranges import TableFullError
from lb.server.accepting import bind, explain_bind, prepare
from lb.server.assembly import Assembly
from lb.server.context import Listening, Pool
from lb.server.listener import Listener
from lb.server.routing import decisions

_log = logging.getLogger(__name__)

Sockets = Mapping[str, socket.socket]
_RESTART = "restart the balancer: its tables are sized at the start, with room for as much again"


class PlanRefusedError(Exception):
    """A configuration cannot be had without a restart; says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.path}: {refusal.problem}; {refusal.remedy}")
        self.refusal = refusal


class Plan:
    """One change, made once."""

    def __init__(
        self,
        assembly: Assembly,
        settings: config.Config,
        difference: Difference,
        *,
        bound: Sockets | None = None,
        bound_workers: Sockets | None = None,
    ) -> None:
        """``bound``, ``bound_workers``: by listener and pool, what is bound already. Taken over."""
        self._assembly = assembly
        self._settings = settings
        self._difference = difference
        self._bound = dict(bound or {})
        self._bound_workers = dict(bound_workers or {})
        self._new_pools: dict[str, Pool] = {}
        self._new_backends: dict[str, list[Backend]] = {}
        self._new_listenings: dict[str, Listening] = {}
        self._rates: dict[str, int] = {}
        self._rules: dict[str, Range] = {}
        self._congestion: str | None = None  # for listening sockets; None: they have what they should

    # What can fail

    def prepare(self) -> None:
        """Makes everything that is new.

        Raises:
            PlanRefusedError: something cannot be had. Nothing has changed.
        """
        self._make_congestion()
        with ExitStack() as undo:
            pools, listeners = self._difference.pools, self._difference.listeners
            for new in (*pools.added, *(after for _, after in pools.replaced)):
                self._make_pool(new, undo)
            for _, after in pools.changed:
                self._make_backends(after, undo)
            for each in self._settings.pools:
                self._bind_workers(each, undo)
            for come in listeners.added:
                self._make_listener(None, come, undo)
            for before_listener, after_listener in listeners.replaced:
                self._make_listener(before_listener, after_listener, undo)
            for before_listener, after_listener in listeners.changed:
                self._make_rate(before_listener, after_listener, undo)
            fresh = {each.name for each in listeners.added} | {each.name for _, each in listeners.replaced}
            for stays in self._settings.listeners:
                if stays.name not in fresh:
                    self._make_rules(stays, undo)
            undo.pop_all()

    def _make_congestion(self) -> None:
        """That it can be had, or what is the machine's if there was another one."""
        congestion = self._settings.tcp.congestion
        if congestion is not None:
            with self._explained("tcp.congestion"):
                sockets.require_congestion(congestion)
            self._congestion = congestion
        elif self._assembly.services.congestion is not None:
            self._congestion = sockets.default_congestion()

    def _path(self, kind: str, name: str) -> str:
        things = self._settings.pools if kind == "pools" else self._settings.listeners
        return f"{kind}[{[each.name for each in things].index(name)}]"

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except TableFullError as error:
            raise PlanRefusedError(
                Refusal(path, f"needs more {error.kind} than the {error.size} there is room for", _RESTART)
            ) from error
        except MachineError as error:
            raise PlanRefusedError(Refusal(path, error.problem, error.remedy)) from error

    def _make_pool(self, new: config.Pool, undo: ExitStack) -> None:
        with self._explained(self._path("pools", new.name)):
            pool = self._new_pools[new.name] = self._assembly.making_pools.build(new)
        undo.callback(self._assembly.making_pools.discard, pool)

    def _make_backends(self, new: config.Pool, undo: ExitStack) -> None:
        members = self._assembly.pool(new.name).members
        backends = self._difference.backends.get(new.name)
        made = self._new_backends[new.name] = []
        if backends is None:
            return
        for configured in (*backends.added, *(after for _, after in backends.replaced)):
            with self._explained(f"{self._path('pools', new.name)}.backends"):
                backend = members.reserve(configured)
            made.append(backend)
            undo.callback(members.cancel, backend)

    def _make_listener(self, old: config.Listener | None, new: config.Listener, undo: ExitStack) -> None:
        making = self._assembly.making_listenings
        path = self._path("listeners", new.name)
        pools = tuple(self._pool(name) for name in new.pools)
        with self._explained(path):
            self._require_message(new)
            if old is None:
                tap = self._assembly.services.plane.taps.new_listener()
            else:  # who looks at it goes on looking
                tap = self._assembly.listener(old.name).listening.policy.listener
            listening = making.build(new, pools, self._settings.runtime.buffer_budget, tap, self._encode(new))
            undo.callback(making.discard, listening)
            for pool in pools:
                if pool.route is not None and pool.bundle is None:
                    self._assembly.making_pools.bundle(pool, listening)
                    undo.callback(self._assembly.making_pools.unbundle, pool)
            if new.name not in self._bound and (old is None or old.address != new.address):
                timeouts = self._settings.pool(new.pool).timeouts
                sock = self._bound[new.name] = _bind(new.address, new.framing, timeouts)
                undo.callback(sock.close)
        self._new_listenings[new.name] = listening

    def _pool(self, name: str) -> Pool:
        """The one of this name that serves, or will."""
        return self._new_pools.get(name) or self._assembly.pool(name)

    def _encode(self, listener: config.Listener) -> Sequence[abi.Test]:
        """Its rules, as the programs will follow them."""
        if not listener.rules:
            return ()
        pools = {name: self._pool(name) for name in listener.pools}
        default = to_pool(pools[listener.pool].index)
        return encode(listener.rules, decisions(pools, self._new_backends), default)

    def _make_rules(self, new: config.Listener, undo: ExitStack) -> None:
        """The rules of a listener that goes on, where they, or the backends that they name, are others."""
        listening = self._assembly.listener(new.name).listening
        moved = {name for name, each in self._difference.backends.items() if each.added or each.replaced}
        if not new.rules or (new.rules == listening.config.rules and not moved & set(new.pools)):
            return
        rules = self._assembly.services.plane.rules
        with self._explained(f"{self._path('listeners', new.name)}.rules"):
            to = rules.reserve(self._encode(new))
        undo.callback(rules.free, to)
        self._rules[new.name] = to

    def _require_message(self, new: config.Listener) -> None:
        """That the largest message fits what was prepared at the start."""
        plane = self._assembly.services.plane
        if new.framing.max_message > plane.max_message:
            raise MachineError(
                f"has messages of up to {new.framing.max_message} bytes, and the balancer was started for"
                f" {plane.max_message}",
                "restart the balancer",
            )
        if new.framing.error_reply is not None and not plane.requests.keeps_heads:
            raise MachineError(
                f"{new.framing.name} has error replies, and the balancer was started without their table",
                "restart the balancer",
            )
        sockets.require_buffer(new.framing.max_message)

    def _make_rate(self, old: config.Listener, new: config.Listener, undo: ExitStack) -> None:
        """A number for the rate of a listener that goes on; the one that it has, if it has one."""
        path = f"{self._path('listeners', new.name)}.limits"
        buckets = self._assembly.services.buckets
        listening = self._assembly.listener(new.name).listening
        number = listening.policy.rate if new.limits.rate is not None else 0
        with self._explained(path):
            self._assembly.making_listenings.require_addresses(new)
            if new.limits.rate is not None and old.limits.rate is None:
                number = buckets.new(new.limits.rate)
                undo.callback(buckets.release, number)
        self._rates[new.name] = number

    def _bind_workers(self, new: config.Pool, undo: ExitStack) -> None:
        """Where workers connect; only if a listener uses them."""
        framing = next((each.framing for each in self._settings.listeners if new.name in each.pools), None)
        if new.workers is None or framing is None or new.name in self._bound_workers:
            return
        for old in self._assembly.pools:
            its = old.config.workers if old.workers is not None else None
            if old.config.name == new.name and its is not None and its.address == new.workers.address:
                return  # it stays, or is handed over
        with self._explained(f"{self._path('pools', new.name)}.accept"):
            sock = _bind(new.workers.address, framing, new.timeouts)
        self._bound_workers[new.name] = sock
        undo.callback(sock.close)

    # What cannot

    async def look_up(self) -> None:
        """Starts to try the backends of new pools, and waits a moment at most for those by name."""
        pools = self._new_pools.values()
        for pool in pools:
            pool.members.start()
        await asyncio.gather(*(pool.members.names.looked() for pool in pools))

    def commit(self) -> None:
        """What was prepared serves, and what is not needed any more ends by itself."""
        assembly, difference = self._assembly, self._difference
        for before, after in difference.pools.changed:
            self._change_pool(before, after)
        handed = {
            after.name: assembly.retire(assembly.listener(after.name), keep=after.name not in self._bound)
            for _, after in difference.listeners.replaced
        }
        for gone in difference.listeners.removed:
            assembly.retire(assembly.listener(gone.name))
        for before, after in difference.pools.replaced:
            keep = after.name not in self._bound_workers and after.workers is not None
            sock = assembly.close_pool(assembly.pool(before.name), keep=keep)
            if sock is not None:
                self._bound_workers[after.name] = sock
        for gone_pool in difference.pools.removed:
            assembly.close_pool(assembly.pool(gone_pool.name))
        for pool in self._new_pools.values():
            assembly.pools.append(pool)
            assembly.making_pools.start_bundle(pool)
        for name, listening in self._new_listenings.items():
            sock = handed.get(name) or self._bound[name]
            prepare(sock, listening.max_message, listening.timeouts)
            self._open(listening, sock)
        self._change_listeners()
        self._arrange()

    def _change_listeners(self) -> None:
        assembly = self._assembly
        for _, after_listener in self._difference.listeners.changed:
            listening = assembly.listener(after_listener.name).listening
            assembly.making_listenings.change(listening, after_listener, self._rates[after_listener.name])
        for name, sock in self._bound_workers.items():
            assembly.making_pools.accept(assembly.pool(name), sock)
        for name, to in self._rules.items():
            assembly.making_listenings.switch(assembly.listener(name).listening, to)

    def _change_pool(self, before: config.Pool, after: config.Pool) -> None:
        pool = self._assembly.pool(after.name)
        pool.members.reconfigure(after)
        self._change_backends(pool)
        if pool.workers is not None and after.workers is not None:
            pool.workers.reconfigure(after.workers)
        if before.timeouts != after.timeouts:
            for listener in self._assembly.listeners:
                if listener.listening.pool is pool:
                    listener.prepare()
                    self._assembly.making_listenings.start(listener.listening)

    def _change_backends(self, pool: Pool) -> None:
        members, backends = pool.members, self._difference.backends.get(pool.config.name)
        if backends is None:
            return
        named = {backend.name: backend for backend in pool.backends}
        for come in self._new_backends[pool.config.name]:
            members.admit(come)
        for gone in backends.removed:
            members.remove(named[gone.name], "it is not in the configuration any more")
        for _, new in backends.replaced:
            members.remove(named[new.name], f"its address is {new.address} now")
        for _, new in backends.changed:
            members.change(named[new.name], new)

    def _open(self, listening: Listening, sock: socket.socket) -> None:
        old = self._predecessor(listening)
        if old is not None:  # the numbers of a name go on
            listening.accepted = old.accepted
            listening.refused = old.refused
            listening.protocol_errors = old.protocol_errors
        listener = Listener(listening, sock)
        self._assembly.listeners.append(listener)
        self._assembly.making_listenings.start(listening)
        for pool in listening.pools:
            self._assembly.making_pools.start_bundle(pool)
        listener.open()
        name, framing = listening.config.name, listening.config.framing
        _log.info(
            "listener %s: %s, %s, pool %s",
            name,
            listener.address,
            framing.name,
            listening.config.pool,
            extra=event("listener", listener=name, address=listener.address),
        )

    def _predecessor(self, listening: Listening) -> Listening | None:
        name = listening.config.name
        same = [each for each in self._assembly.retired if each.config.name == name]
        replaced = {after.name for _, after in self._difference.listeners.replaced}
        return same[-1] if same and name in replaced else None

    def _arrange(self) -> None:
        """In the order of the file, with what all of them take from it."""
        assembly, settings = self._assembly, self._settings
        pools = {pool.config.name: pool for pool in assembly.pools}
        assembly.pools[:] = [pools[each.name] for each in settings.pools]
        listeners = {listener.listening.config.name: listener for listener in assembly.listeners}
        assembly.listeners[:] = [listeners[each.name] for each in settings.listeners]
        for listener in assembly.listeners:
            listener.listening.renew(settings.runtime.buffer_budget)
        self._set_congestion(settings.tcp.congestion)
        assembly.settings = settings

    def _set_congestion(self, name: str | None) -> None:
        """What connections to come get; None: what they would have by themselves."""
        self._assembly.services.congestion = name
        chosen = self._congestion
        if chosen is None:
            return
        for listener in self._assembly.listeners:
            listener.set_congestion(chosen)
        for pool in self._assembly.pools:
            if pool.workers is not None:
                pool.workers.set_congestion(chosen)


def _bind(address: config.Address, framing: Framing, timeouts: config.Timeouts) -> socket.socket:
    try:
        return bind(address, framing.max_message, timeouts)
    except OSError as error:
        raise explain_bind(error, str(address)) from error
