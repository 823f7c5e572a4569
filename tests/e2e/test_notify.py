"""What a service manager hears from the program."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals

from tests.e2e.balancer import Balancer
from tests.e2e.lab import Lab
from tests.e2e.messages import message
from tests.e2e.polling import LIMIT, eventually
from tests.e2e.processes import SOCKMAP_LB, Process

WATCHDOG = 0.5  # seconds


class Manager:
    """The socket of a service manager."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.address)
        self._sock.settimeout(LIMIT)
        # The program has dropped root by the time that it speaks.
        path.chmod(0o777)

    def hear(self) -> dict[str, str]:
        """The next notification."""
        lines = self._sock.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def hear_until(self, key: str) -> dict[str, str]:
        """The next one with this key; signs of life and news may come before."""
        while key not in (heard := self.hear()):
            assert heard.keys() <= {"WATCHDOG", "STATUS"}, heard
        return heard

    def forget(self) -> None:
        """What was said until now."""
        while not self.is_silent_for(0.01):
            pass

    def is_silent_for(self, seconds: float) -> bool:
        """Whether nothing comes in this time."""
        self._sock.settimeout(seconds)
        try:
            self._sock.recv(4096)
        except TimeoutError:
            return True
        finally:
            self._sock.settimeout(LIMIT)
        return False

    def close(self) -> None:
        """No more is heard."""
        self._sock.close()


@contextmanager
def managed(lab: Lab) -> Iterator[tuple[Manager, Balancer]]:
    """A balancer that a service manager has started."""
    manager = Manager(lab.folder / "notify")

    def launch(path: Path) -> Process:
        environment = (f"NOTIFY_SOCKET={manager.address}", f"WATCHDOG_USEC={WATCHDOG * 1e6:.0f}")
        return lab.start("env", *environment, *SOCKMAP_LB, "run", "-c", str(path))

    try:
        yield manager, lab.balancer(lab.tree([lab.backend()]), launch=launch)
    finally:
        manager.close()


def test_a_life_under_a_service_manager(lab: Lab) -> None:
    with managed(lab) as (manager, balancer):
        assert manager.hear() == {"READY": "1"}
        assert balancer.connect().ask(message(1)), "ready is ready"
        eventually(lambda: manager.hear().get("STATUS") == "serving: clients: 1, backends up: 1 of 1")
        assert manager.hear_until("WATCHDOG") == {"WATCHDOG": "1"}
        balancer.close_clients()
        balancer.process.signal(Signals.SIGTERM)
        # timeouts.drain is 5 s; the rest is for what comes after.
        assert manager.hear_until("STOPPING") == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "10000000"}
        assert balancer.wait().code == 0


def test_no_sign_of_life_while_it_hangs(lab: Lab) -> None:
    with managed(lab) as (manager, balancer):
        assert manager.hear() == {"READY": "1"}
        manager.hear_until("WATCHDOG")
        with balancer.standing_still():
            manager.forget()
            assert manager.is_silent_for(3 * WATCHDOG)
        manager.hear_until("WATCHDOG")
