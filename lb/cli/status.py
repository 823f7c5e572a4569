"""``sockmap-lb status``: what the admin address knows, as tables."""

import argparse
import json
from collections.abc import Sequence

from lb.cli import remote
from lb.cli.table import render
from lb.status import ServerStatus


def fetch(admin: str) -> ServerStatus:
    """The state of a running balancer; raises :class:`RemoteError`."""
    status: ServerStatus = remote.ask(admin, "/status")
    return status


def main(options: argparse.Namespace) -> int:
    """Prints the state once."""
    status = fetch(options.admin)
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
            (
                "BACKEND",
                "ADDRESS",
                "ADMIN",
                "HEALTH",
                "WEIGHT",
                "CONNECTIONS",
                "OUTSTANDING",
                "REQUESTS",
                "RESPONSES",
            ),
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
            backend["admin"],
            backend["health"] if backend["ejected_seconds_left"] is None else "ejected",
            backend["effective_weight"],
            backend["connections"],
            backend["outstanding"],
            backend["requests"],
            backend["responses"],
        )
        for pool in status["pools"]
        for backend in pool["backends"]
    ]
