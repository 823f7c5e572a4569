"""``GET /tap/LISTENER``: some of a listener's messages as they go, a line of JSON each."""

import json
from contextlib import closing, suppress

from aiohttp import web

from lb.admin import guard
from lb.server import MOST_SAMPLES, Tapping, TooManyViewersError, UnknownListenerError

_DEFAULT_RATE = 100


class TapPage:
    """Streams what is seen, until the viewer leaves, has seen enough, or the balancer ends.

    ``?rate=N`` samples a second at most (100), ``?count=N`` lines in all (without end). Lines are
    :class:`lb.server.tapping.Line`, and ``{"lost": N}`` if the viewer did not keep up.
    """

    def __init__(self, tapping: Tapping) -> None:
        self._tapping = tapping

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Makes it known."""
        router.add_get("/tap/{listener}", self._get_tap)

    async def _get_tap(self, request: web.Request) -> web.StreamResponse:
        if why := guard.foreign(request.headers):  # it changes nothing, but says more than anything else here
            raise _refusal(web.HTTPForbidden, why)
        rate = _number(request, "rate", _DEFAULT_RATE, MOST_SAMPLES)
        count = _number(request, "count", None, None)
        try:
            viewer = self._tapping.open(request.match_info["listener"], rate or _DEFAULT_RATE)
        except UnknownListenerError as error:
            raise _refusal(web.HTTPNotFound, str(error)) from None
        except TooManyViewersError as error:
            raise _refusal(web.HTTPTooManyRequests, str(error)) from None
        with closing(viewer):
            response = web.StreamResponse(
                headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"}
            )
            with suppress(ConnectionResetError):  # the viewer has left
                await response.prepare(request)
                lost = seen = 0
                async for line in viewer.lines():
                    await _write(response, line)
                    seen += 1
                    if viewer.lost > lost:
                        lost = viewer.lost
                        await _write(response, {"lost": lost})
                    if seen == count:
                        break
                viewer.close()
                if viewer.lost > lost:  # in the kernel
                    await _write(response, {"lost": viewer.lost})
                await response.write_eof()
        return response


async def _write(response: web.StreamResponse, line: object) -> None:
    await response.write(json.dumps(line).encode() + b"\n")


def _number(request: web.Request, name: str, default: int | None, most: int | None) -> int | None:
    text = request.query.get(name)
    if text is None:
        return default
    if text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= (most or int(text)):
        return int(text)
    bounds = f"from 1 to {most}" if most else "from 1"
    raise _refusal(web.HTTPBadRequest, f"{name} must be a number {bounds}, not {text[:20]!r}")


def _refusal(kind: type[web.HTTPClientError], why: str) -> web.HTTPClientError:
    return kind(text=json.dumps({"error": why}), content_type="application/json")
