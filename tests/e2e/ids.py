# ruff: noqa: T201
"""Stands in front of a DNS server and looks whether an id is ever in flight twice on a connection.

``python -m tests.e2e.ids HOST PORT`` prints its own address, and for each connection that ends how many
queries and duplicates it saw.
"""

import asyncio
import sys


async def _messages(reader: asyncio.StreamReader) -> bytes:
    """One message, or nothing at the end of the stream."""
    try:
        head = await reader.readexactly(2)
        return head + await reader.readexactly(int.from_bytes(head, "big"))
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


class _Watch:
    """One connection to the server."""

    def __init__(self) -> None:
        self.in_flight: set[bytes] = set()
        self.queries = self.duplicates = self.most = 0

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, queries: bool
    ) -> None:
        while message := await _messages(reader):
            ident = message[2:4]
            if queries:
                self.queries += 1
                self.duplicates += ident in self.in_flight
                self.in_flight.add(ident)
                self.most = max(self.most, len(self.in_flight))
            else:
                self.in_flight.discard(ident)
            writer.write(message)
            await writer.drain()
        writer.close()


async def _serve(host: str, port: int) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, port)
        watch = _Watch()
        await asyncio.gather(
            watch.carry(reader, back, queries=True), watch.carry(there, writer, queries=False)
        )
        print(f"queries {watch.queries} duplicates {watch.duplicates} most {watch.most}", flush=True)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print("{}:{}".format(*server.sockets[0].getsockname()), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
