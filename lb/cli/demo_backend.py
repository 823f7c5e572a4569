"""``sockmap-lb demo-backend``: answers length-prefixed messages with its name and what was asked."""

import argparse
import asyncio
import contextlib
import signal

from lb.demo.backend import DemoBackend


def main(options: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; prints the address on the first line."""
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_serve(options.name, options.listen))
    return 0


async def _serve(name: str, listen: str) -> None:
    loop = asyncio.get_running_loop()
    serving = asyncio.current_task()
    assert serving is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    host, _, port = listen.rpartition(":")
    server = await loop.create_server(lambda: DemoBackend(name), host.strip("[]"), int(port))
    bound_host, bound_port = server.sockets[0].getsockname()[:2]
    print(f"{bound_host}:{bound_port}", flush=True)
    await server.serve_forever()
