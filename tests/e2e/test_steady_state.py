"""While the kernel carries messages, the process does not touch one of them."""

import logging
import re
from collections.abc import Callable
from signal import Signals

from tests.e2e.lab import Lab
from tests.e2e.load import Pipeline, pipelines
from tests.e2e.messages import message

log = logging.getLogger(__name__)

CONNECTIONS = 16
EACH = 2000
MOVED = 2 * CONNECTIONS * EACH  # requests and responses
# Every system call that can move the bytes of a message.
TRANSFERS = re.compile(
    r"p?(read|write)(64|v2?)?|(recv|send)(from|to|m?msg)?|sendfile|splice|tee|vmsplice|io_uring_\w+"
)


def test_no_message_enters_the_process(lab: Lab, need: Callable[..., None]) -> None:
    need("strace")
    balancer = lab.serve([lab.demo_backend(name)[1] for name in "abc"], balance="round_robin")
    requests = [message(number, bytes(56)) for number in range(EACH)]

    def make(_: int) -> Pipeline:
        return Pipeline(requests, depth=16)

    connected = [balancer.connect() for _ in range(CONNECTIONS)]
    for client in connected:
        client.ask(message(0))
    before = balancer.metrics()
    trace = lab.folder / "strace"
    strace = lab.start("strace", "-f", "-c", "-o", str(trace), "-p", str(balancer.pid))
    strace.stderr.wait_for("attached")
    socks = iter([client.sock for client in connected])
    answers = pipelines(lambda: next(socks), CONNECTIONS, make)
    strace.signal(Signals.SIGINT)
    strace.wait()

    assert sum(map(len, answers)) == CONNECTIONS * EACH
    after = balancer.metrics()
    assert after.value("messages_total") - before.value("messages_total") == CONNECTIONS * EACH
    assert after.value("responses_total") - before.value("responses_total") == CONNECTIONS * EACH
    assert after.value("datapath_messages_total", path="userspace") == 0
    calls = read_summary(trace.read_text(encoding="ascii"))
    log.info("system calls while %d messages moved: %s", MOVED, calls)
    transfers = {name: count for name, count in calls.items() if TRANSFERS.fullmatch(name)}
    # The event loop wakes itself by reading and writing an eventfd; sockets it does not even look at.
    assert not transfers.keys() - {"read", "write"}, calls
    assert sum(transfers.values()) <= MOVED / 1000, calls
    assert sum(calls.values()) <= MOVED / 100, calls


def read_summary(text: str) -> dict[str, int]:
    """Calls by name, from the table of ``strace -c``."""
    rows = [line.split() for line in text.splitlines()]
    return {row[-1]: int(row[3]) for row in rows if len(row) >= 5 and row[3].isdigit() and row[-1] != "total"}
