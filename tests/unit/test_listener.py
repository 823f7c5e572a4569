"""Sockets of listeners."""

import socket
from contextlib import closing
from ipaddress import ip_address

import pytest

from lb import config
from lb.framing import PRESETS
from lb.server import accepting


def bind(host: str, port: int = 0) -> socket.socket:
    address = config.Address(ip_address(host), port)
    return accepting.bind(address, PRESETS["dns"].max_message, config.Timeouts())


def test_a_port_has_a_listener_of_each_family() -> None:
    with closing(bind("0.0.0.0")) as v4:
        port = v4.getsockname()[1]
        with closing(bind("::", port)) as v6:
            v4.listen()
            v6.listen()
            for host, taker, other in (("127.0.0.1", v4, v6), ("::1", v6, v4)):
                taker.settimeout(10)
                with socket.create_connection((host, port), 10), closing(taker.accept()[0]) as accepted:
                    assert accepted.getpeername()[0] == host
                with pytest.raises(BlockingIOError):
                    other.accept()
                taker.setblocking(False)
