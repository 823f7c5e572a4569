"""The commands. Nouns show, verbs change; exit 0: fine, 1: refused, 2: usage."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import lb
from lb.cli.remote import DEFAULT_ADMIN, RemoteError
from lb.config.errors import ConfigErrors
from lb.dataplane.errors import MachineError

_BACKEND = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.@:-]+")
_CHANGES = {
    "drain": "no new messages for a backend; its connections end when they owe nothing",
    "ready": "let a backend serve again",
    "maint": "as drain, and nobody connects to it, not even to check",
    "weight": "change a backend's share of the messages",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.module == "run":
        # By default a container's first process ignores it, and the start takes a second. It drains later.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there is nothing to reload yet
    # Only the command that runs is imported: `check` needs neither libbpf nor uvloop.
    command = import_module(f"lb.cli.{options.module}")
    try:
        code: int = command.main(options)
    except ConfigErrors as errors:
        for error in errors.errors:
            print(error, file=sys.stderr)
        return 1
    except (MachineError, RemoteError) as error:
        print(f"sockmap-lb: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `sockmap-lb status | head`
        sys.stderr.close()
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sockmap-lb", description="A load balancer for messages, whose data path stays in the kernel."
    )
    parser.add_argument("--version", action="version", version=f"sockmap-lb {lb.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="serve a configuration until SIGTERM")
    run.add_argument("-c", "--config", type=Path, required=True, metavar="FILE")
    run.add_argument("--log-format", choices=("text", "json"), default="text")
    run.set_defaults(module="run")

    check = commands.add_parser("check", help="validate a configuration; print every error")
    check.add_argument("file", type=Path, metavar="FILE")
    check.set_defaults(module="check")

    doctor = commands.add_parser("doctor", help="would `run` work on this machine?")
    doctor.set_defaults(module="doctor")

    demo = commands.add_parser("demo", help="three backends, a balancer and some load on loopback")
    demo.add_argument("--seconds", type=_seconds, default=10.0, metavar="N", help="how long (default: 10)")
    demo.set_defaults(module="demo")

    status = commands.add_parser("status", help="state of listeners, pools and backends")
    _add_admin(status)
    status.add_argument("--json", action="store_true", help="for machines")
    status.set_defaults(module="status")

    top = commands.add_parser("top", help="messages a second, durations and state of each backend, live")
    _add_admin(top)
    top.add_argument("--interval", type=_seconds, default=1.0, metavar="SECONDS", help="default: 1")
    top.add_argument("--once", action="store_true", help="one interval, then exit")
    top.add_argument("--json", action="store_true", help="for machines: a line for each interval")
    top.set_defaults(module="top")

    reload = commands.add_parser("reload", help="apply what has changed in the configuration file")
    _add_admin(reload)
    reload.set_defaults(module="reload")

    for name, what in _CHANGES.items():
        change = commands.add_parser(name, help=what)
        change.add_argument("backend", type=_backend, metavar="POOL/BACKEND")
        if name == "weight":
            change.add_argument("weight", type=int, metavar="N", help="0 (no new messages) to 256")
        _add_admin(change)
        change.set_defaults(module="change", command=name, wait=None)
        if name in ("drain", "maint"):
            change.add_argument(
                "--wait",
                type=_seconds,
                metavar="SECONDS",
                help="until its connections have ended; else exit 1",
            )

    tap = commands.add_parser("tap", help="show some of a listener's messages as they go")
    tap.add_argument("listener", metavar="LISTENER")
    tap.add_argument("--rate", type=int, default=100, metavar="N", help="at most N a second (default: 100)")
    tap.add_argument("--count", type=int, metavar="N", help="end after N messages")
    tap.add_argument("--bytes", type=int, default=16, metavar="N", help="of each, up to 64 (default: 16)")
    _add_admin(tap)
    tap.add_argument("--json", action="store_true", help="for machines: a line of JSON each")
    tap.set_defaults(module="tap")

    # Not listed: what the demonstration and the compose file are made of.
    backend = commands.add_parser("demo-backend")
    backend.add_argument("--name", required=True)
    backend.add_argument("--listen", default="127.0.0.1:0", metavar="ADDR")
    backend.set_defaults(module="demo_backend")
    return parser


def _add_admin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--admin",
        default=os.environ.get("SOCKMAP_LB_ADMIN", DEFAULT_ADMIN),
        metavar="ADDR",
        help=f"default: $SOCKMAP_LB_ADMIN, or {DEFAULT_ADMIN}",
    )


def _backend(text: str) -> str:
    if _BACKEND.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not POOL/BACKEND, such as workers/a")
    return text


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value
