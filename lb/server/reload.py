"""Reloading the configuration file while clients are served.

A file that is wrong, or that asks for what only a restart can give, changes nothing: its errors are logged as
``sockmap-lb check`` prints them. One reload at a time; a signal or a change of the file that comes meanwhile
is another one afterwards, a request over HTTP is refused.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from lb import config
from lb.config.changes import Difference, Refusal, difference
from lb.config.lines import error_at
from lb.server.plan import Plan, PlanRefusedError
from lb.server.server import Server

_log = logging.getLogger(__name__)


class BusyError(Exception):
    """Not now; says why."""


class Reloader:
    """Applies a file to a server, again and again."""

    def __init__(self, server: Server, source: Path) -> None:
        self.successful = True
        self.succeeded_at = time.time()  # when the configuration in use was read
        # Told before and after each attempt; after it, whether it succeeded (systemd wants to know).
        self.on_begin: list[Callable[[], None]] = []
        self.on_end: list[Callable[[bool], None]] = []
        self._server = server
        self._source = source
        self._running = False
        self._again: str | None = None

    def request(self, why: str) -> None:
        """Reloads soon; for those who do not wait for the outcome, which is logged."""
        if self._running:
            self._again = why
            return
        _log.info("reload: %s", why)
        if not self._server.serves:
            _log.warning("reload: not now: %s", self._server.state)
            return
        self._server.spawn("reload", self._run())

    async def _run(self) -> None:
        try:
            await self.reload()
        except config.ConfigErrors:
            pass  # it is logged
        except BusyError as error:
            _log.warning("reload: not now: %s", error)

    async def reload(self) -> dict[str, list[str]]:
        """What was done, by names.

        Raises:
            BusyError: another one is under way, or the balancer starts or ends.
            ConfigErrors: the file is wrong. Nothing has changed.
        """
        if self._running:
            raise BusyError("another reload is under way")
        if not self._server.serves:
            raise BusyError(f"the balancer is {self._server.state}")
        self._running = True
        for begin in self.on_begin:
            begin()
        succeeded = False
        try:
            done = await self._reload()
            succeeded = True
        except config.ConfigErrors as errors:
            for error in errors.errors:
                _log.warning("%s", error)
            _log.warning("reload: refused, the configuration in use stays: %d errors", len(errors.errors))
            raise
        finally:
            self._running = False
            self.successful = succeeded
            for end in self.on_end:
                end(succeeded)
            again, self._again = self._again, None
            if again is not None:
                asyncio.get_running_loop().call_soon(self.request, again)
        self.succeeded_at = time.time()
        told = "; ".join(f"{what.replace('_', ' ')}: {', '.join(names)}" for what, names in done.items())
        _log.info("reload: %s", told or "nothing has changed")
        return done

    async def _reload(self) -> dict[str, list[str]]:
        settings = await asyncio.to_thread(config.load, self._source)
        if not self._server.serves:
            raise BusyError(f"the balancer is {self._server.state}")
        found = difference(self._server.settings, settings)
        if found.refusals:
            raise self._refuse(found.refusals)
        await self._apply(settings, found)
        return found.summary()

    async def _apply(self, settings: config.Config, found: Difference) -> None:
        plan = Plan(self._server.assembly, settings, found)
        try:
            plan.prepare()
        except PlanRefusedError as error:
            raise self._refuse([error.refusal]) from error
        await plan.look_up()
        if not self._server.serves:
            raise BusyError(f"the balancer is {self._server.state}")
        plan.commit()

    def _refuse(self, refusals: "tuple[Refusal, ...] | list[Refusal]") -> config.ConfigErrors:
        try:
            text = self._source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""  # it has changed since; the line is not that important
        source = str(self._source)
        return config.ConfigErrors(
            tuple(error_at(text, source, each.path, each.problem, each.remedy) for each in refusals)
        )
