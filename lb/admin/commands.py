"""What operators change in a running balancer: ``POST /backends/POOL/BACKEND/drain`` and the like."""

import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from lb.backends import MOST_WEIGHT, AdminState, Backend
from lb.status import Status

_Handler = Callable[[web.Request], Awaitable[web.Response]]


class Commands:
    """Takes backends out and back, and changes their weights."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Makes them known."""
        for state in AdminState:
            router.add_post(f"/backends/{{pool}}/{{backend}}/{state.value}", self._administer(state))
        router.add_post("/backends/{pool}/{backend}/weight", self._weigh)
        router.add_get("/backends/{pool}/{backend}", self._show)

    def _administer(self, state: AdminState) -> _Handler:
        async def handle(request: web.Request) -> web.Response:
            backend = self._backend(request)
            backend.administer(state)
            return self._answer(backend)

        return handle

    async def _weigh(self, request: web.Request) -> web.Response:
        backend = self._backend(request)
        backend.set_weight(await _read_weight(request))
        return self._answer(backend)

    async def _show(self, request: web.Request) -> web.Response:
        return self._answer(self._backend(request))

    def _backend(self, request: web.Request) -> Backend:
        pool, name = request.match_info["pool"], request.match_info["backend"]
        backend = self._status.find(pool, name)
        if backend is None:
            raise refusal(web.HTTPNotFound, f"there is no backend {pool}/{name}; GET /status lists them")
        return backend

    def _answer(self, backend: Backend) -> web.Response:
        return web.json_response(self._status.backend(backend))


async def _read_weight(request: web.Request) -> int:
    try:
        body = await request.json()
    except ValueError:
        body = None
    weight = body.get("weight") if isinstance(body, dict) else None
    if type(weight) is not int:  # True is an int too
        raise refusal(web.HTTPUnprocessableEntity, 'the body must be JSON such as {"weight": 2}')
    if not 0 <= weight <= MOST_WEIGHT:
        why = "0 takes no new messages; the kernel's turns are too coarse for more"
        raise refusal(web.HTTPUnprocessableEntity, f"{weight} is outside 0..{MOST_WEIGHT} ({why})")
    return weight


def refusal(kind: type[web.HTTPClientError], why: str) -> web.HTTPClientError:
    """The answer to a request that cannot be done; says why."""
    return kind(text=json.dumps({"error": why}), content_type="application/json")
