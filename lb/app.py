"""The composition root: puts the layers together in the order that the machine needs.

What needs privilege comes first (load, bind), then every privilege is dropped, then the self-test proves
that the rest works without, and only then does anybody listen.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import uvloop

from lb import config, privileges
from lb.admin import Admin
from lb.dataplane import DataPlane, MachineError, load, selftest, sockets
from lb.events import Ring, event, recorded
from lb.framing import Framing
from lb.metrics import Metrics
from lb.notify import Notifier
from lb.server import Server
from lb.server.accepting import bind, explain_bind
from lb.server.capacity import sizes
from lb.server.reload import Reloader
from lb.server.watch import watch
from lb.status import Status

_log = logging.getLogger(__name__)

# Descriptors that are not connections: maps, programs, listeners, the admin address, logs.
_RESERVED_DESCRIPTORS = 128
_FEWEST_CONNECTIONS = 64
_ENDING = (signal.SIGTERM, signal.SIGINT)
_LAST_WORDS = 5.0  # seconds that the end takes at most, besides the drain


def run(settings: config.Config, source: Path) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        MachineError: this machine cannot; nothing was served.
    """
    connections = usable_connections(settings.runtime.max_connections)
    with ExitStack() as stack:
        events = stack.enter_context(recorded())
        plane = load(sizes(settings, connections))
        stack.callback(plane.close)
        bound = [stack.enter_context(_bind(settings, listener)) for listener in settings.listeners]
        workers = {name: stack.enter_context(sock) for name, sock in _bind_workers(settings)}
        admin = settings.admin.address
        admin_socket = stack.enter_context(_bind_admin(admin)) if admin is not None else None
        notifier = stack.enter_context(closing(Notifier.from_environment()))
        _log.info("%s", privileges.drop(settings.runtime.user))
        sockets.require_buffer(max(listener.framing.max_message for listener in settings.listeners))
        if settings.tcp.congestion is not None:
            sockets.require_congestion(settings.tcp.congestion)
        selftest.require(plane)
        uvloop.run(_serve(settings, source, plane, bound, workers, admin_socket, notifier, events))


def usable_connections(wanted: int) -> int:
    """As many connections as wanted, if the process may have the descriptors; raises its own soft limit.

    Raises:
        MachineError: too few for any use.
    """
    needed = wanted + _RESERVED_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            _log.warning(
                "max_connections is %d instead of %d: the process may have %d descriptors; raise `ulimit -Hn`"
                " (systemd: LimitNOFILE=) to %d",
                soft - _RESERVED_DESCRIPTORS,
                wanted,
                soft,
                needed,
            )
            wanted = soft - _RESERVED_DESCRIPTORS
    if wanted < _FEWEST_CONNECTIONS and soft < needed:
        raise MachineError(f"the process may have {soft} descriptors", f"raise `ulimit -Hn` to {needed}")
    return wanted


def _bind(settings: config.Config, listener: config.Listener) -> socket.socket:
    return _bind_address(listener.address, listener.framing, settings.pool(listener.pool).timeouts)


def _bind_workers(settings: config.Config) -> Iterator[tuple[str, socket.socket]]:
    """A socket for each pool that accepts workers and is in use."""
    framings = {pool: listener.framing for listener in settings.listeners for pool in listener.pools}
    for pool in settings.pools:
        if pool.workers is not None and pool.name in framings:
            yield pool.name, _bind_address(pool.workers.address, framings[pool.name], pool.timeouts)


def _bind_address(address: config.Address, framing: Framing, timeouts: config.Timeouts) -> socket.socket:
    try:
        return bind(address, framing.max_message, timeouts)
    except OSError as error:
        raise explain_bind(error, str(address)) from error


def _bind_admin(address: config.Address) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address.sockaddr)
    except OSError as error:
        sock.close()
        raise explain_bind(error, str(address)) from error
    return sock


async def _serve(
    settings: config.Config,
    source: Path,
    plane: DataPlane,
    bound: list[socket.socket],
    workers: dict[str, socket.socket],
    admin_socket: socket.socket | None,
    notifier: Notifier,
    events: Ring,
) -> None:
    server = Server(settings, plane, bound, workers)
    status = Status(server, source)
    reloader = Reloader(server, source)
    reloader.on_begin.append(notifier.reloading)
    reloader.on_end.append(lambda _: notifier.ready())
    admin = Admin(Metrics(server, reloader), status, server.tapping, events, reloader)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    serving = asyncio.current_task()
    assert serving is not None

    def ending() -> None:
        notifier.stopping(max(pool.config.timeouts.drain for pool in server.pools) + _LAST_WORDS)

    _listen_to_signals(stop, serving, ending)
    loop.add_signal_handler(signal.SIGHUP, reloader.request, "SIGHUP")
    try:
        async with asyncio.TaskGroup() as tasks:
            main = tasks.create_task(server.run(stop), name="server")
            await server.started.wait()
            server.assembly.services.serve("watch of the configuration", _watch(server, reloader, source))
            if admin_socket is not None:
                await admin.start(admin_socket)
            if admin_socket is not None:
                _log.info("admin: http://%s:%d", *admin_socket.getsockname()[:2])
            gc.collect()
            gc.freeze()  # what there is now stays: the collector need not look at it with each generation
            notifier.ready()
            telling = tasks.create_task(notifier.keep_telling(status.summary), name="notify")
            await main
            telling.cancel()
    except asyncio.CancelledError:
        if not stop.is_set() and serving.cancelling() == 0:
            raise
    finally:
        with suppress(asyncio.CancelledError):  # one more signal: it need not be orderly
            await admin.stop()
        # Python and the loop give handlers back before the process ends: one more signal would kill it.
        for number in (*_ENDING, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    _log.info("stopped")


async def _watch(server: Server, reloader: Reloader, source: Path) -> None:
    """Reloads a file that has changed, while the configuration in use wants that."""
    if not os.access(source, os.R_OK):
        _log.warning("%s cannot be read by who serves: it cannot be reloaded", source)
    await watch(
        source,
        lambda: server.settings.runtime.watch,
        lambda: reloader.request(f"{source} has changed"),
    )


def _listen_to_signals(stop: asyncio.Event, serving: asyncio.Task[None], ending: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if not stop.is_set():
            ending()
        if stop.is_set() or number is signal.SIGINT:
            if not serving.cancelling():  # again, it would cut the orderly end short
                _log.info("%s: closing at once", number.name, extra=event("process"))
                serving.cancel()
        else:
            _log.info("%s: draining; once more closes at once", number.name, extra=event("process"))
            stop.set()

    # Not as handlers of the loop, between whose end and ours signals have their default action.
    for number in _ENDING:
        signal.signal(number, lambda number, _: loop.call_soon_threadsafe(on_signal, signal.Signals(number)))
