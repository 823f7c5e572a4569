"""``sockmap-lb tap``: some of a listener's messages, a line each."""

import argparse
import http.client
import json
import sys
import time
from urllib.parse import quote, urlencode

from lb.cli.remote import RemoteError, nobody
from lb.server.tapping import Line

_TIMEOUT = 5.0
_GROUP = 4  # bytes that are written together
_HEADER = ("TIME", "CLIENT", "BACKEND", "BYTES", "DURATION", "START OF THE MESSAGE")
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def main(options: argparse.Namespace) -> int:
    """Shows messages until it is interrupted, has shown enough, or the balancer ends."""
    asked = {"rate": options.rate} | ({} if options.count is None else {"count": options.count})
    path = f"/tap/{quote(options.listener, safe='')}?{urlencode(asked)}"
    connection = http.client.HTTPConnection(options.admin, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise RemoteError(_reason(answer))
        if connection.sock is not None:
            connection.sock.settimeout(None)  # a message may be long in coming
        seen = _show(answer, options)
    except OSError as error:
        raise nobody(options.admin, error) from error
    except http.client.HTTPException as error:
        raise RemoteError(f"{options.admin} has ended the tap") from error
    finally:
        connection.close()
    if options.count is not None and seen < options.count:
        raise RemoteError("the balancer has ended")
    return 0


def _reason(answer: http.client.HTTPResponse) -> str:
    try:
        return str(json.loads(answer.read())["error"])
    except (ValueError, KeyError, TypeError):
        return f"what answers is not sockmap-lb, or an older one (HTTP {answer.status})"


def _show(answer: http.client.HTTPResponse, options: argparse.Namespace) -> int:
    """Prints lines as they come; how many there were."""
    seen = 0
    if not options.json:
        print(_columns(*_HEADER), flush=True)
    while text := answer.readline().decode():
        line = json.loads(text)
        if "lost" in line:
            print(f"sockmap-lb: {line['lost']} samples lost so far: lower --rate", file=sys.stderr)
            continue
        seen += 1
        print(text.rstrip("\n") if options.json else format_line(line, options.bytes), flush=True)
    return seen


def format_line(line: Line, shown: int) -> str:
    """A line for people, with at most so many bytes of the message."""
    clock = time.strftime("%H:%M:%S", time.localtime(line["time"])) + f"{line['time'] % 1:.6f}"[1:]
    backend = line["outcome"] if line["backend"] is None else f"{line['pool']}/{line['backend']}"
    start = format_bytes(bytes.fromhex(line["bytes"])[:shown], shown)
    return _columns(
        clock, line["client"], backend, str(line["size"]), format_duration(line["duration_seconds"]), start
    )


def format_duration(seconds: float | None) -> str:
    """Three digits and a unit; "-" if there is no duration."""
    if seconds is None:
        return "-"
    # What would be rounded to 1000 of a unit has the next one.
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if seconds >= 0.9995 * scale), _UNITS[-1])
    value = seconds / scale
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def format_bytes(data: bytes, width: int) -> str:
    """Hexadecimal in groups, padded to what ``width`` bytes need, then what can be printed."""
    room = 2 * width + (width - 1) // _GROUP
    printable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
    return f"{data.hex(' ', -_GROUP):<{room}}  {printable}"


def _columns(clock: str, client: str, backend: str, size: str, took: str, start: str) -> str:
    return f"{clock:<15}  {client:<21}  {backend:<16}  {size:>7}  {took:>8}  {start}".rstrip()
