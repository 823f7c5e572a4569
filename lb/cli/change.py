"""``sockmap-lb drain|ready|maint|weight``: changes a backend of a running balancer."""

import argparse
import sys
import time

from lb.cli import remote
from lb.status import OneBackendStatus

_LOOK = 0.1


def main(options: argparse.Namespace) -> int:
    """Changes, and says how it is then; with ``--wait``, when its connections have ended."""
    path = f"/backends/{options.backend}"
    body = {"weight": options.weight} if options.command == "weight" else None
    backend: OneBackendStatus = remote.ask(
        options.admin, f"{path}/{options.command}", method="POST", body=body
    )
    print(text(backend))
    if not backend["serving"]:
        print(f"sockmap-lb: no backend of pool {backend['pool']} takes new messages now", file=sys.stderr)
    if options.wait is None:
        return 0
    end = time.monotonic() + options.wait
    while backend["connections"] or backend["outstanding"]:
        if time.monotonic() >= end:
            print(f"sockmap-lb: not empty within {options.wait:g} s: {text(backend)}", file=sys.stderr)
            return 1
        time.sleep(_LOOK)
        backend = remote.ask(options.admin, path)
    print(text(backend))
    return 0


def text(backend: OneBackendStatus) -> str:
    """One line."""
    return (
        f"{backend['pool']}/{backend['name']}: {backend['admin']}, {backend['health']},"
        f" weight {backend['weight']} (now {backend['effective_weight']:g}),"
        f" {backend['connections']} connections, {backend['outstanding']} outstanding"
    )
