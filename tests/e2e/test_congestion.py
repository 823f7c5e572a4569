"""The congestion control algorithm of all connections, chosen in the configuration."""

import re
import socket

from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, Tree
from tests.e2e.lab import Lab
from tests.e2e.messages import message

# Every kernel has it, and allows it to everybody.
RENO = "reno"


def default() -> str:
    with socket.socket() as sock:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\0")[0].decode()


def algorithms(lab: Lab, balancer: Balancer, backend: Backend) -> tuple[set[str], set[str]]:
    """Those of a new client's connection and of the one that its message takes, at the balancer's ends."""
    listener = balancer.listeners["rpc"][1]
    with balancer.connect() as client:
        client.ask(message(1))
        names = []
        for where in (f"( sport = :{listener} )", f"( dport = :{backend.endpoint[1]} )"):
            done = lab.run("ss", "-tinH", "state", "established", where)
            names.append(set(re.findall(r"^\s+(?:ts|sack|ecn|\s)*(\w+) wscale", done.out, re.MULTILINE)))
        client_side, backend_side = names
        return client_side, backend_side


def of(tree: Tree, congestion: str | None) -> Tree:
    return {**tree, "tcp": {"congestion": congestion}} if congestion is not None else tree


def test_of_clients_and_upstreams_until_a_reload(lab: Lab) -> None:
    """It holds for connections to come; without one they have the machine's again."""
    backend = lab.backend()
    plain = lab.tree([backend])
    balancer = lab.balancer(of(plain, RENO)).wait_ready()
    assert balancer.status()["congestion_control"] == RENO
    assert algorithms(lab, balancer, backend) == ({RENO}, {RENO})

    assert balancer.reload(plain)[0] == 200
    assert balancer.status()["congestion_control"] == default()
    assert algorithms(lab, balancer, backend) == ({default()}, {default()})

    assert balancer.reload(of(plain, RENO))[0] == 200
    assert algorithms(lab, balancer, backend) == ({RENO}, {RENO})

    code, answer = balancer.reload(of(plain, "no-such"))
    assert code == 422, answer
    (error,) = answer["errors"]
    assert "tcp.congestion: this machine has no congestion control algorithm no-such; run `modprobe" in error
    assert algorithms(lab, balancer, backend) == ({RENO}, {RENO})
