"""``sockmap-lb top``: who gets how many messages, and how fast the answers are, live."""

import argparse
import json
import sys
import time

from lb.cli.rates import BackendRates, Rates, between
from lb.cli.remote import RemoteError
from lb.cli.screen import Screen
from lb.cli.status import fetch
from lb.cli.table import render
from lb.status import ServerStatus

_KIB = 1024


def main(options: argparse.Namespace) -> int:
    """A live picture on a terminal until q is pressed; elsewhere, or with ``--json``, one after the other."""
    before = fetch(options.admin)  # nobody there: the end
    try:
        if options.once or options.json or not sys.stdout.isatty():
            _print(options, before)
        else:
            with Screen() as screen:
                _watch(screen, options, before)
    except KeyboardInterrupt:
        pass
    return 0


def _print(options: argparse.Namespace, before: ServerStatus) -> None:
    while True:
        time.sleep(options.interval)
        after = fetch(options.admin)
        rates = between(before, after)
        print(json.dumps(rates) if options.json else "\n".join(picture(after, rates)), flush=True)
        if options.once:
            return
        if not options.json:
            print()
        before = after


def _watch(screen: Screen, options: argparse.Namespace, before: ServerStatus) -> None:
    lines = [f"{options.admin}: the first {options.interval:g} s ...", "q: quit"]
    while True:
        screen.draw(lines)
        if screen.wait(options.interval) in ("q", "Q"):
            return
        try:
            after = fetch(options.admin)
        except RemoteError as error:  # it is restarted, perhaps
            lines = [f"{time.strftime('%H:%M:%S')} {error}", *lines[-1:]]
            continue
        lines = [*picture(after, between(before, after)), "", "q: quit"]
        before = after


def picture(status: ServerStatus, rates: Rates) -> list[str]:
    """The state for people, in lines."""
    why = f" ({'; '.join(rates['not_ready_because'])})" if rates["not_ready_because"] else ""
    return [
        (
            f"sockmap-lb {status['version']}, {status['configuration']}, up {status['uptime_seconds']:.0f} s:"
            f" {rates['state']}, {'ready' if rates['ready'] else 'not ready'}{why}"
        ),
        (
            f"{rates['messages_per_second']:,.0f} messages/s, {rates['dropped_per_second']:,.0f} dropped/s,"
            f" {rates['clients']:,} clients, {_size(rates['buffered_bytes'])} buffered"
        ),
        "",
        *render(
            (
                "BACKEND",
                "ADMIN",
                "HEALTH",
                "WEIGHT",
                "MESSAGES/S",
                "OUTSTANDING",
                "P50",
                "P99",
                "CONNECTIONS",
            ),
            [_row(backend) for backend in rates["backends"]],
        ).splitlines(),
    ]


def _row(backend: BackendRates) -> tuple[object, ...]:
    return (
        f"{backend['pool']}/{backend['backend']}",
        backend["admin"],
        backend["health"],
        backend["effective_weight"],
        round(backend["messages_per_second"]),
        backend["outstanding"],
        _duration(backend["p50"]),
        _duration(backend["p99"]),
        backend["connections"],
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < _KIB:
            return f"{size:.3g} {unit}"
        size /= _KIB
    return f"{size:.3g} GiB"
