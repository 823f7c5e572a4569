"""``sockmap-lb status``: what the admin address knows, as tables."""

import argparse
import http.client
import json
import sys
from collections.abc import Sequence

from lb.cli.table import render
from lb.status import ServerStatus

_TIMEOUT = 5.0


def fetch(admin: str) -> ServerStatus:
    """Asks a running balancer.

    Raises:
        OSError: nobody answers at the address.
        ValueError: somebody else does.
    """
    connection = http.client.HTTPConnection(admin, timeout=_TIMEOUT)
    try:
        connection.request("GET", "/status")
        answer = connection.getresponse()
        status: ServerStatus = json.loads(answer.read())
    except http.client.HTTPException as error:
        raise ValueError(str(error)) from error
    finally:
        connection.close()
    return status


def main(options: argparse.Namespace) -> int:
    """Prints the state once."""
    try:
        status = fetch(options.admin)
    except OSError as error:
        print(
            f"sockmap-lb: nobody answers at {options.admin}: {error.strerror or error};"
            " give the admin.address of the configuration with --admin",
            file=sys.stderr,
        )
        return 1
    except ValueError:
        print(f"sockmap-lb: what answers at {options.admin} is not sockmap-lb", file=sys.stderr)
        return 1
    print(json.dumps(status, indent=2) if options.json else text(status))
    return 0


def text(status: ServerStatus) -> str:
    """The state for people."""
    why = f" ({'; '.join(status['not_ready_because'])})" if status["not_ready_because"] else ""
    readiness = f"{'ready' if status['ready'] else 'not ready'}{why}"
    sockets = f"{status['sockets']} of {status['max_sockets']} sockets"
    lines = [
        f"sockmap-lb {status['version']}, Linux {status['kernel']}, {status['configuration']}",
        f"{status['state']}, {readiness}, up {status['uptime_seconds']:.0f} s, {sockets}",
        "",
        render(
            ("LISTENER", "ADDRESS", "PROTOCOL", "POOL", "CLIENTS", "ACCEPTED", "REFUSED", "MALFORMED"),
            [
                (
                    entry["name"],
                    entry["address"],
                    entry["protocol"],
                    entry["pool"],
                    _of(entry["clients"], entry["limits"]["max_clients"]),
                    entry["accepted"],
                    sum(entry["refused"].values()),
                    sum(entry["protocol_errors"].values()),
                )
                for entry in status["listeners"]
            ],
        ),
        "",
        render(
            ("BACKEND", "ADDRESS", "HEALTH", "WEIGHT", "CONNECTIONS", "OUTSTANDING", "REQUESTS", "RESPONSES"),
            _backends(status),
        ),
    ]
    lost = {reason: count for reason, count in status["dropped_messages"].items() if count}
    if lost:
        lines += ["", render(("DROPPED", "MESSAGES"), list(lost.items()))]
    return "\n".join(lines)


def _of(count: int, limit: int | None) -> int | str:
    return count if limit is None else f"{count} of {limit}"


def _backends(status: ServerStatus) -> list[Sequence[object]]:
    return [
        (
            f"{pool['name']}/{backend['name']}",
            backend["address"],
            backend["health"],
            backend["effective_weight"],
            backend["connections"],
            backend["outstanding"],
            backend["requests"],
            backend["responses"],
        )
        for pool in status["pools"]
        for backend in pool["backends"]
    ]
