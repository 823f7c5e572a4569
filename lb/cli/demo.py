"""``sockmap-lb demo``: backends, balancer and load on loopback, and what becomes of the messages."""

import argparse
import asyncio
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from contextlib import AsyncExitStack

import uvloop

from lb.cli.status import fetch
from lb.dataplane import MachineError
from lb.demo.load import LoadConnection, Tally
from lb.status import ServerStatus

_WEIGHTS = {"a": 1, "b": 2, "c": 3}
_CONNECTIONS = 2
_DEPTH = 16
_SIZE = 64
_BAR = 30
_START_LIMIT = 20.0


def main(options: argparse.Namespace) -> int:
    """Shows the spread of messages live; 0 if every answer was right."""
    return uvloop.run(_demonstrate(options.seconds))


async def _demonstrate(seconds: float) -> int:
    async with AsyncExitStack() as stack:
        addresses = {}
        for name in _WEIGHTS:
            process = await _start(stack, "demo-backend", "--name", name, stdout=PIPE)
            assert process.stdout is not None
            addresses[name] = (await process.stdout.readline()).decode().strip()
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".yaml") as file:
            file.write(_configuration(addresses))
            file.flush()
            balancer = await _start(stack, "run", "-c", file.name, stderr=PIPE)
            listener, admin = await _addresses(balancer)
        print(f"One balancer, {len(_WEIGHTS)} backends of weight {', '.join(map(str, _WEIGHTS.values()))}.")
        print(f"{_CONNECTIONS} client connections, on each {_DEPTH} requests of {_SIZE} bytes at a time.")
        print(f"Listener {listener}, metrics at http://{admin}/metrics\n")
        tally = Tally()
        connections = [await _connect(stack, listener, tally) for _ in range(_CONNECTIONS)]
        broken = await _watch(tally, connections, admin, seconds)
        status = await asyncio.to_thread(fetch, admin)
    return _conclude(tally, status, broken=broken)


def _configuration(addresses: dict[str, str]) -> str:
    backends = "".join(
        f"      - {{name: {name}, address: {address}, weight: {_WEIGHTS[name]}}}\n"
        for name, address in addresses.items()
    )
    return (
        "admin: {address: 127.0.0.1:0}\n"
        "runtime: {max_connections: 256}\n"
        "protocols:\n"
        "  demo:\n"
        "    length: {offset: 0, width: 4, adjust: 4}\n"
        "    id: {offset: 4, width: 4}\n"
        "    max_message: 64KiB\n"
        "listeners:\n"
        "  - {name: demo, address: 127.0.0.1:0, protocol: demo, pool: demo}\n"
        "pools:\n"
        "  - name: demo\n"
        "    balance: round_robin\n"
        "    backends:\n" + backends
    )


async def _start(stack: AsyncExitStack, *arguments: str, **pipes: int) -> Process:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "lb", *arguments, **pipes)  # type: ignore[arg-type]
    stack.push_async_callback(_stop, process)
    return process


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.communicate()


async def _addresses(balancer: Process) -> tuple[str, str]:
    """Listener and admin address, from the balancer's log."""
    listener = admin = ""
    lines: list[str] = []
    assert balancer.stderr is not None
    async with asyncio.timeout(_START_LIMIT):
        while not (listener and admin):
            line = (await balancer.stderr.readline()).decode()
            if not line:
                raise MachineError(
                    f"the balancer did not start: {''.join(lines[-1:]).strip()}", "run `sockmap-lb doctor`"
                )
            lines.append(line)
            if " listener demo: " in line:
                listener = line.split(" listener demo: ")[1].split(",")[0]
            elif " admin: http://" in line:
                admin = line.split(" admin: http://")[1].strip()
    return listener, admin


async def _connect(stack: AsyncExitStack, listener: str, tally: Tally) -> LoadConnection:
    host, _, port = listener.rpartition(":")
    transport, protocol = await asyncio.get_running_loop().create_connection(
        lambda: LoadConnection(tally, depth=_DEPTH, size=_SIZE), host, int(port)
    )
    stack.callback(transport.abort)
    return protocol


async def _watch(tally: Tally, connections: list[LoadConnection], admin: str, seconds: float) -> bool:
    """Prints a picture every second; True if a connection broke."""
    end = time.monotonic() + seconds
    before = dict.fromkeys(_WEIGHTS, 0)
    live = sys.stdout.isatty()
    drawn = 0
    failures = [connection.failed for connection in connections]
    while (left := end - time.monotonic()) > 0:
        interval = min(1.0, left)
        done, _ = await asyncio.wait(failures, timeout=interval, return_when=asyncio.FIRST_COMPLETED)
        if done:
            return True
        now = {name: tally.answers[name] for name in _WEIGHTS}
        rates = {name: (now[name] - before[name]) / interval for name in _WEIGHTS}
        before = now
        status = await asyncio.to_thread(fetch, admin)
        picture = _picture(rates, tally, status)
        if live and drawn:
            sys.stdout.write(f"\x1b[{drawn}F\x1b[J")
        print("\n".join(picture), flush=True)
        drawn = len(picture)
    return False


def _picture(rates: dict[str, float], tally: Tally, status: ServerStatus) -> list[str]:
    total = sum(rates.values()) or 1.0
    lines = []
    for name, rate in rates.items():
        share = rate / total
        bar = ("#" * round(share * _BAR)).ljust(_BAR)
        outstanding = next(
            backend["outstanding"] for backend in status["pools"][0]["backends"] if backend["name"] == name
        )
        lines.append(
            f"  backend {name}  weight {_WEIGHTS[name]}  {bar} {share:6.1%}  {rate:9,.0f} msg/s"
            f"  {outstanding:3} outstanding"
        )
    ordered = sorted(tally.durations)
    if ordered:
        half, tail = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
        lines.append(f"  all {total:,.0f} msg/s  p50 {half * 1e6:,.0f} us  p99 {tail * 1e6:,.0f} us")
    return lines


def _conclude(tally: Tally, status: ServerStatus, *, broken: bool) -> int:
    answered = sum(tally.answers.values())
    dropped = sum(status["dropped_messages"].values())
    print(f"\n{answered:,} requests answered, {tally.wrong} answers wrong, {dropped} messages dropped.")
    if broken:
        print("A connection broke.")
    return 0 if answered and not tally.wrong and not broken else 1
