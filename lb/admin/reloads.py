"""``POST /reload``: the configuration file is read again, and what it changes is applied."""

from aiohttp import web

from lb.config import ConfigErrors
from lb.server.reload import BusyError, Reloader


class Reloads:
    """Answers 200 with what was done, 422 with the errors of the file, 409 while it is not possible."""

    def __init__(self, reloader: Reloader) -> None:
        self._reloader = reloader

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Makes it known."""
        router.add_post("/reload", self._reload)

    async def _reload(self, _: web.Request) -> web.Response:
        try:
            done = await self._reloader.reload()
        except BusyError as error:
            return web.json_response({"error": str(error)}, status=409)
        except ConfigErrors as errors:
            told = [str(error) for error in errors.errors]
            return web.json_response({"error": "\n".join(told), "errors": told}, status=422)
        return web.json_response({"changed": done})
