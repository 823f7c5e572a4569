"""``GET /``: the dashboard, a page and its parts, which ask ``/status`` and ``/events`` once a second.

No build step, and nothing from elsewhere: the policy that goes with every part lets the browser load from
this address only, and run no script that stands in the page.
"""

from importlib import resources

from aiohttp import web

_PAGE = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Dashboard:
    """The parts of the page, read once."""

    def __init__(self) -> None:
        folder = resources.files("lb.admin").joinpath("assets")
        self._parts = {
            entry.name: (entry.read_bytes(), _TYPES[f".{entry.name.rpartition('.')[2]}"])
            for entry in folder.iterdir()
        }

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Makes them known."""
        router.add_get("/", self._get_page)
        router.add_get("/dashboard/{part}", self._get_part)

    async def _get_page(self, _: web.Request) -> web.Response:
        return self._answer(_PAGE)

    async def _get_part(self, request: web.Request) -> web.Response:
        part = request.match_info["part"]
        if part not in self._parts or part == _PAGE:
            raise web.HTTPNotFound
        return self._answer(part)

    def _answer(self, part: str) -> web.Response:
        body, kind = self._parts[part]
        return web.Response(body=body, headers=_HEADERS | {"Content-Type": kind})
