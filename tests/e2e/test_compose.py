"""docker-compose.yml: as Docker Compose reads it, and as podman runs it."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.e2e.balancer import dump
from tests.e2e.client import Client
from tests.e2e.conftest import need
from tests.e2e.containers import Podman
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import LIMIT, PATIENCE, eventually_equal
from tests.e2e.processes import ROOT, SOCKMAP_LB, Done, run

FILE = ROOT / "docker-compose.yml"
# Those whose image is here; Prometheus and Grafana would come from a registry.
OURS = ("balancer", "backend-a", "backend-b", "backend-c")
# podman asks for more processes than the machine may allow.
LIMITS = '[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=10000:10000"]\n'


def test_compose_accepts_the_file() -> None:
    """Its schema, its anchors, and what it makes of both."""
    need("docker-compose")
    done = run(["docker-compose", "--file", str(FILE), "config"])
    assert done.code == 0, done.err
    services = yaml.safe_load(done.out)["services"]
    assert services.keys() == {*OURS, "prometheus", "grafana"}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert all(is_local(port) for port in service.get("ports", ())), name
    assert [name for name, service in services.items() if service.get("cap_add")] == ["balancer"]


def is_local(port: str | dict[str, str]) -> bool:
    """Whether nobody but this machine reaches a port; version 2 writes ports as mappings."""
    host = port.rpartition(":")[0] if isinstance(port, str) else port.get("host_ip", "")
    return host.startswith("127.0.0.1")


class Compose:
    """A project in the network of the test, with the image that is here."""

    def __init__(self, podman: Podman, lab: Lab) -> None:
        own: dict[str, dict[str, object]] = {name: {"image": podman.image} for name in OURS}
        own["balancer"]["ulimits"] = {"nofile": 20000, "nproc": 10000}
        override, limits = lab.folder / "override.yml", lab.folder / "containers.conf"
        override.write_text(dump({"services": own}), encoding="utf-8")
        limits.write_text(LIMITS, encoding="utf-8")
        environment = (f"CONTAINERS_CONF={limits}", f"PATH={podman.program()}:{os.environ['PATH']}")
        # `ip netns exec` would hide the control groups.
        inside = ("nsenter", f"--net=/run/netns/{lab.here.name}", "env", *environment)
        program = str(Path(sys.executable).with_name("podman-compose"))
        self.name = f"test-{os.getpid()}"
        self._command = (*inside, program, "--project-name", self.name, "-f", str(FILE), "-f", str(override))

    def run(self, *arguments: str) -> Done:
        """A command of the project's."""
        return run([*self._command, *arguments], limit=6 * LIMIT)

    @contextmanager
    def up(self) -> Iterator[None]:
        """Start ours, and remove all of them."""
        try:
            done = self.run("up", "--detach", *OURS)
            assert done.code == 0, done.out + done.err
            yield
        finally:
            done = self.run("down", "--volumes")
            assert done.code == 0, done.out + done.err


@pytest.mark.timeout(900 * PATIENCE)  # it may be the first that waits for the image
def test_a_client_is_served_by_all_backends(podman: Podman, lab: Lab) -> None:
    need("catatonit", "iptables", "nsenter")
    published = "127.0.0.1", 7000
    compose = Compose(podman, lab)
    with compose.up():
        status = (*SOCKMAP_LB, "status", "--json")

        def healths() -> list[str]:
            done = lab.run(*status)
            pools = json.loads(done.out)["pools"] if done.code == 0 else []
            return [backend["health"] for pool in pools for backend in pool["backends"]]

        eventually_equal(healths, ["up", "up", "up"], limit=6 * LIMIT)
        with Client(lab.here.connect(published)) as client:
            answers = [read_answer(client.ask(message(number))[0]) for number in range(30)]
        assert {answer.backend for answer in answers} == {"a", "b", "c"}
