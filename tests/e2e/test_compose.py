"""docker-compose.yml, as Docker Compose reads it."""

import yaml

from tests.e2e.conftest import need
from tests.e2e.processes import ROOT, run


def test_compose_accepts_the_file() -> None:
    """Its schema, its anchors, and what it makes of both."""
    need("docker-compose")
    done = run(["docker-compose", "--file", str(ROOT / "docker-compose.yml"), "config"])
    assert done.code == 0, done.err
    services = yaml.safe_load(done.out)["services"]
    assert services.keys() == {"balancer", "backend-a", "backend-b", "backend-c", "prometheus", "grafana"}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    assert [name for name, service in services.items() if service.get("cap_add")] == ["balancer"]
