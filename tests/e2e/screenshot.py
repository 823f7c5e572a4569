# ruff: noqa: T201
"""Makes docs/images/dashboard.png: the dashboard of a balancer with two listeners, under some load.

As root: ``python -m tests.e2e.screenshot [FILE]``. Needs chromium and pngquant; takes a minute and a
half, for charts that show something.
"""

import asyncio
import base64
import json
import math
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from lb.demo.load import LoadConnection, Tally
from tests.e2e.balancer import Balancer, Tree, show
from tests.e2e.browser import Browser
from tests.e2e.lab import Lab
from tests.e2e.processes import ROOT

_FILE = ROOT / "docs/images/dashboard.png"
_WIDTH, _HEIGHT = 1200, 1092
_SECONDS = 75
_MOST = 150_000  # bytes: the repository keeps every version
_WEIGHTS = {"orders": {"a": 3, "b": 2, "c": 1}, "search": {"east": 1, "west": 1}}
_WAVE = 40  # seconds
_CONFIGURATION = "/etc/sockmap-lb/config.yaml"  # shown instead of where a test has its files


def main() -> int:
    """Writes the file; 1 if it is too large."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else _FILE
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        lab = Lab(Path(folder), stack)
        balancer = lab.balancer(_tree(lab)).wait_ready()
        with Browser(lab.here, Path(folder)) as browser:
            browser.resize(_WIDTH, _HEIGHT)
            browser.open(f"http://{show(balancer.admin)}/")
            asyncio.run(_load(balancer, browser))
            browser.ask("scrollTo(0, 0)")
            browser.ask(
                f"about.textContent = about.textContent.replace(/\\S+$/, {json.dumps(_CONFIGURATION)})"
            )
            picture = _fewer_colours(base64.b64decode(browser.screenshot()))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(picture)
    print(f"{target}: {len(picture)} bytes")
    return int(len(picture) > _MOST)


def _fewer_colours(picture: bytes) -> bytes:
    """The same picture with a palette: a third of the size."""
    return subprocess.run(
        ["pngquant", "-"], input=picture, capture_output=True, check=True, timeout=60
    ).stdout


def _tree(lab: Lab) -> Tree:
    pools = []
    for pool, weights in _WEIGHTS.items():
        backends = [
            {"name": name, "address": show(lab.demo_backend(name)[1]), "weight": weight}
            for name, weight in weights.items()
        ]
        pools.append({"name": pool, "backends": backends, "timeouts": {"drain": "5s"}})
        pools[-1]["balance"] = "round_robin"
    pools[1]["connections"] = "shared"
    listeners = [
        {"name": pool, "address": "127.0.0.1:0", "protocol": "length-prefixed", "pool": pool}
        for pool in _WEIGHTS
    ]
    return {
        "admin": {"address": "127.0.0.1:0"},
        "runtime": {"max_connections": 1024},
        "listeners": listeners,
        "pools": pools,
    }


async def _load(balancer: Balancer, browser: Browser) -> None:
    """Clients whose depth rises and falls; in the middle of it somebody drains a backend."""
    loop = asyncio.get_running_loop()
    tally = Tally()
    for second in range(_SECONDS):
        transports = []
        for place, listener in enumerate(_WEIGHTS):
            wave = 1 + math.sin(2 * math.pi * (second / _WAVE + place / 3))
            sock = balancer.where.connect(balancer.listeners[listener])
            sock.setblocking(False)
            make = partial(LoadConnection, tally, depth=1 + round((2 + place) * wave), size=256)
            transport, _ = await loop.create_connection(make, sock=sock)
            transports.append(transport)
        await asyncio.sleep(1)
        for transport in transports:
            transport.close()
        if second == _SECONDS * 2 // 3:
            await asyncio.to_thread(browser.click, "tbody tr:nth-child(3) button")
    assert not tally.wrong
    states = [backend["admin"] for backend in balancer.status()["pools"][0]["backends"]]
    assert states == ["ready", "ready", "drain"], states


if __name__ == "__main__":
    sys.exit(main())
