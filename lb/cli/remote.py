"""Asking a running balancer, by the HTTP of its admin address."""

import http.client
import json
from typing import Any

DEFAULT_ADMIN = "127.0.0.1:9901"
_TIMEOUT = 5.0


class RemoteError(Exception):
    """The balancer does not do, or say, what it was asked; the text is for the operator."""


def ask(admin: str, path: str, *, method: str = "GET", body: object = None) -> Any:
    """What a running balancer answers, read from JSON.

    Args:
        admin: its address, HOST:PORT.
        path: below it.
        method: POST for what changes something.
        body: is sent as JSON; None: nothing is.

    Raises:
        RemoteError: nobody answers, somebody else does, or it is refused.
    """
    try:
        connection = http.client.HTTPConnection(admin, timeout=_TIMEOUT)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            code, text = answer.status, answer.read()
        finally:
            connection.close()
        said = json.loads(text)
    except OSError as error:
        raise nobody(admin, error) from error
    except (http.client.HTTPException, ValueError) as error:
        raise RemoteError(f"what answers at {admin} is not sockmap-lb") from error
    if code >= http.client.BAD_REQUEST:
        raise RemoteError(said["error"] if isinstance(said, dict) and "error" in said else f"HTTP {code}")
    return said


def nobody(admin: str, error: OSError) -> RemoteError:
    """What to say when there is no connection."""
    return RemoteError(
        f"nobody answers at {admin}: {error.strerror or error};"
        " give the admin.address of the configuration with --admin, or in SOCKMAP_LB_ADMIN"
    )
