"""The unit, under a real systemd: in a container, where it may be the first process."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.e2e.balancer import dump
from tests.e2e.client import Client
from tests.e2e.containers import LIMITS, Podman
from tests.e2e.lab import Lab
from tests.e2e.messages import message
from tests.e2e.polling import LIMIT, PATIENCE, eventually, eventually_equal
from tests.e2e.processes import ROOT, Done, run

UNIT = ROOT / "deploy" / "systemd" / "sockmap-lb.service"
NAME = UNIT.name
IMAGE = "localhost/sockmap-lb-systemd"
PLACE = f"/etc/systemd/system/{NAME}"
DOCKERFILE = """\
ARG BASE
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends procps systemd
ENTRYPOINT ["/lib/systemd/systemd"]
CMD []
"""

# The first test waits for the images.
pytestmark = pytest.mark.timeout(900 * PATIENCE)


@pytest.fixture(name="image", scope="module")
def _image(podman: Podman) -> str:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "Dockerfile"
        file.write_text(DOCKERFILE, encoding="utf-8")
        build = ("build", "--format=docker", "--layers=false", "--network=host", *LIMITS)
        podman.do(*build, f"--build-arg=BASE={podman.image}", f"--tag={IMAGE}", folder)
    return IMAGE


class Machine:
    """A machine with systemd, in the network of the test."""

    def __init__(self, podman: Podman, lab: Lab, *mounts: str) -> None:
        self._podman = podman
        options = ("--detach", "--rm", "--name=systemd", "--privileged", "--systemd=always", *LIMITS)
        volumes = (f"--volume={mount}:ro" for mount in (f"{UNIT}:{PLACE}", *mounts))
        podman.do("run", *options, f"--network=ns:/run/netns/{lab.here.name}", *volumes, IMAGE)

    def run(self, *arguments: str) -> Done:
        """A command inside."""
        return run(self._podman.command("exec", "systemd", *arguments))

    def do(self, *arguments: str) -> str:
        """A command inside that succeeds; returns what it says."""
        done = self.run(*arguments)
        assert done.code == 0, done.out + done.err + self.journal()
        return done.out

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.do("systemctl", "show", f"--property={name}", "--value", NAME)

    def journal(self, *options: str) -> str:
        """Of the unit."""
        return self.run("journalctl", "--unit", NAME, "--no-pager", "--output=cat", *options).out

    def close(self) -> None:
        """Switch it off."""
        self._podman.do("stop", "--time=5", "systemd")


@pytest.fixture(name="folder")
def _folder(lab: Lab) -> Path:
    """/etc/sockmap-lb."""
    folder = lab.folder / "etc"
    folder.mkdir()
    return folder


@pytest.fixture(name="machine")
def _machine(podman: Podman, image: str, lab: Lab, folder: Path) -> Iterator[Machine]:
    machine = Machine(podman, lab, f"{folder}:/etc/sockmap-lb")
    try:
        state = ("systemctl", "is-system-running")
        eventually(lambda: machine.run(*state).out in ("running", "degraded"), limit=6 * LIMIT)
        yield machine
    finally:
        machine.close()


def test_the_unit(machine: Machine, lab: Lab, folder: Path) -> None:
    """From start to stop, with a reload that fails and a hang between."""
    backend = lab.backend()
    tree = lab.tree([backend], address="127.0.0.1:7000") | {"admin": {"address": "127.0.0.1:9901"}}
    configuration = folder / "config.yaml"
    configuration.write_text(dump(tree), encoding="utf-8")

    assert machine.run("systemd-analyze", "verify", PLACE) == Done(0, "", "")
    # Of 100; what is left is the network, and the three capabilities.
    machine.do("systemd-analyze", "security", "--offline=yes", "--threshold=20", PLACE)

    machine.do("systemctl", "start", NAME)
    eventually_equal(lambda: machine.show("StatusText"), "serving: clients: 0, backends up: 1 of 1")
    assert answers(lab)
    process = dict(
        line.split(":\t", 1)
        for line in machine.do("cat", f"/proc/{machine.show('MainPID')}/status").splitlines()
    )
    assert machine.journal("--priority=info").count("serving as ") == 1
    assert "serving as " not in machine.journal("--priority=notice"), "the level is the journal's too"
    assert "0" not in process["Uid"].split()
    assert all(int(process[kind], 16) == 0 for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"))

    configuration.write_text(dump(tree | {"listener": []}), encoding="utf-8")
    assert machine.run("systemctl", "reload", NAME).code != 0
    assert "listener: unknown key" in machine.journal()
    assert answers(lab), "it goes on with the configuration that it has"
    configuration.write_text(dump(tree), encoding="utf-8")
    machine.do("systemctl", "reload", NAME)
    eventually_equal(lambda: machine.show("ActiveState"), "active")
    assert answers(lab)

    hang_up(machine)
    assert answers(lab), "another one serves"
    machine.do("systemctl", "stop", NAME)
    assert (machine.show("Result"), machine.show("ExecMainStatus")) == ("success", "0")


def hang_up(machine: Machine) -> None:
    """Let systemd find out that it hangs, and start another."""
    machine.do("mkdir", "-p", f"/run/systemd/system/{NAME}.d")
    more_often = f"printf '[Service]\\nWatchdogSec=2s\\n' > /run/systemd/system/{NAME}.d/watchdog.conf"
    machine.do("sh", "-c", more_often)
    machine.do("systemctl", "daemon-reload")
    machine.do("systemctl", "restart", NAME)
    machine.do("kill", "-STOP", machine.show("MainPID"))
    eventually_equal(lambda: machine.show("NRestarts"), "1", limit=3 * LIMIT)
    assert "Watchdog timeout" in machine.journal()
    eventually_equal(lambda: machine.show("ActiveState"), "active", limit=3 * LIMIT)


def answers(lab: Lab) -> bool:
    """Whether a client is served."""
    with Client(lab.here.connect(("127.0.0.1", 7000))) as client:
        return bool(client.ask(message(1)))
