"""The example configurations are valid, and what is deployed together fits together."""

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import yaml

from lb.config import load

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "deploy" / "examples"


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_is_valid(path: Path) -> None:
    config = load(path)

    assert config.listeners
    pools = [config.pool(listener.pool) for listener in config.listeners]
    assert all(pool.backends or pool.workers for pool in pools)


def test_the_custom_protocol_shows_every_key() -> None:
    (protocol,) = _yaml(EXAMPLES / "custom-protocol.yaml")["protocols"].values()

    match = {"offset", "width", "mask", "value"}
    assert {key: set(value) for key, value in protocol.items() if isinstance(value, dict)} == {
        "length": {"offset", "width", "endian", "mask", "adjust"},
        "id": {"offset", "width", "endian"},
        "response": match,
        "no_response": match,
        "magic": match - {"mask"},
    }
    assert {key for key, value in protocol.items() if not isinstance(value, dict)} == {
        "max_message",
        "min_message",
        "ordering",
        "responses",
    }


def test_compose_gives_the_backends_the_addresses_that_the_balancer_uses() -> None:
    config = load(EXAMPLES / "compose.yaml")
    services = _yaml(ROOT / "docker-compose.yml")["services"]

    started = {}
    for service in services.values():
        command = service.get("command", [])
        if "demo-backend" in command:
            listen = command[command.index("--listen") + 1]
            address = service["networks"]["mesh"]["ipv4_address"]
            started[command[command.index("--name") + 1]] = f"{address}:{listen.rpartition(':')[2]}"

    (pool,) = config.pools
    assert started == {backend.name: str(backend.address) for backend in pool.backends}


def test_compose_publishes_the_ports_that_the_balancer_listens_on() -> None:
    config = load(EXAMPLES / "compose.yaml")
    services = _yaml(ROOT / "docker-compose.yml")["services"]
    assert config.admin.address is not None

    published = {int(port.rpartition(":")[2]) for port in services["balancer"]["ports"]}
    assert published == {config.admin.address.port, *(listener.address.port for listener in config.listeners)}
    assert config.admin.address.host == IPv4Address("0.0.0.0")

    (scrape,) = _yaml(ROOT / "deploy" / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"balancer:{config.admin.address.port}"]}]
