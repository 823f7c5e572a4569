"""Who may change something: people and programs, but no page of another site in an operator's browser.

Any page can make a browser send a POST to 127.0.0.1:9901. A browser says where a request comes from (Origin,
Sec-Fetch-Site), so one of another site is told by that. A site can also let its own name point to this
address, and is the same site then; so a browser has to name the balancer by an IP address, or as localhost.
Programs send none of these headers, and may use any name.
"""

from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

_HARMLESS = {"GET", "HEAD", "OPTIONS"}
_OWN = {"same-origin", "none"}  # none: typed, or a bookmark


@web.middleware
async def changes(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Lets what changes something through, unless another site may be behind it."""
    if request.method not in _HARMLESS and (why := foreign(request.headers)):
        return web.json_response({"error": why}, status=403)
    return await handler(request)


def foreign(headers: Mapping[str, str]) -> str | None:
    """Why a request may be another site's; None if it is not. ``headers`` ignore case."""
    site, host = headers.get("Sec-Fetch-Site"), headers.get("Host", "")
    origin = headers.get("Origin") or headers.get("Referer")
    if site is None and origin is None:
        return None
    if site is not None and site not in _OWN:
        return f"a page of another site asks for this (Sec-Fetch-Site: {site})"
    if origin is not None and _netloc(origin) != host:
        return f"a page of {origin} asks for this"
    if not _is_address(host):
        return f"a browser that changes something must name the balancer by its IP address, not as {host}"
    return None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False
