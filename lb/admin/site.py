"""Serves the admin address."""

import socket

from aiohttp import web

from lb.admin import guard
from lb.admin.commands import Commands, refusal
from lb.admin.dashboard import Dashboard
from lb.admin.reloads import Reloads
from lb.admin.tap import TapPage
from lb.events import Ring
from lb.metrics import CONTENT_TYPE, Metrics
from lb.server import Tapping
from lb.server.reload import Reloader
from lb.status import Status

_DIGITS = 15  # of the number of an event: what a JSON number can hold


class Admin:
    """Serves HTTP on a bound socket."""

    def __init__(
        self, metrics: Metrics, status: Status, tapping: Tapping, events: Ring, reloader: Reloader
    ) -> None:
        self._metrics = metrics
        self._status = status
        self._events = events
        application = web.Application(middlewares=[guard.changes])
        application.router.add_get("/metrics", self._get_metrics)
        application.router.add_get("/healthz", self._get_healthz)
        application.router.add_get("/readyz", self._get_readyz)
        application.router.add_get("/status", self._get_status)
        application.router.add_get("/events", self._get_events)
        Commands(status).add_to(application.router)
        Reloads(reloader).add_to(application.router)
        TapPage(tapping).add_to(application.router)
        Dashboard().add_to(application.router)
        # A tap whose viewer has left, with nothing to see, would learn of it by nothing else.
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True)

    async def start(self, sock: socket.socket) -> None:
        """Starts to listen. The socket stays the caller's."""
        await self._runner.setup()
        await web.SockSite(self._runner, sock).start()

    async def stop(self) -> None:
        """Stops to listen and closes the connections."""
        await self._runner.cleanup()

    async def _get_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _get_healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _get_readyz(self, request: web.Request) -> web.Response:
        obstacles = self._status.obstacles()
        verdict = "not ready" if obstacles else "ready"
        lines = [verdict, *obstacles] if "verbose" in request.query else [verdict]
        return web.Response(text="\n".join(lines) + "\n", status=503 if obstacles else 200)

    async def _get_status(self, _: web.Request) -> web.Response:
        return web.json_response(self._status.snapshot())

    async def _get_events(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) <= _DIGITS):
            raise refusal(web.HTTPUnprocessableEntity, "`after` is the number of an event, 0 for all")
        return web.json_response(self._events.after(int(after)))
