"""The Kubernetes manifests: valid by Kubernetes' own schemas, and in step with what they deploy."""

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lb import config
from lb.dataplane.loader import CAP_ADD

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
# The oldest that is still maintained by somebody, and the newest that the schemas know.
VERSIONS = ("1.30", str(kubernetes_validate.latest_version()))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


MANIFESTS = {entry["kind"]: entry for entry in documents("sockmap-lb.yaml")}
POD = MANIFESTS["DaemonSet"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


@pytest.fixture(name="settings")
def _settings(tmp_path: Path) -> config.Config:
    """What the ConfigMap says."""
    (text,) = MANIFESTS["ConfigMap"]["data"].values()
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(path)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", MANIFESTS)
def test_valid(kind: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], version, strict=True)


def test_a_mistake_would_be_found() -> None:
    wrong = json.loads(json.dumps(MANIFESTS["DaemonSet"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_exactly_the_capabilities_that_loading_needs() -> None:
    context = CONTAINER["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": CAP_ADD.split(",")}
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert "privileged" not in context


def test_the_ports_are_those_of_the_configuration(settings: config.Config) -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert settings.admin.address is not None
    assert ports == {"admin": settings.admin.address.port} | {
        listener.name: listener.address.port for listener in settings.listeners
    }


def test_the_probes_ask_for_what_there_is() -> None:
    probes = {key: probe["httpGet"] for key, probe in CONTAINER.items() if key.endswith("Probe")}
    assert probes == {
        "startupProbe": {"path": "/healthz", "port": "admin"},
        "livenessProbe": {"path": "/healthz", "port": "admin"},
        "readinessProbe": {"path": "/readyz", "port": "admin"},
    }


def test_the_end_is_waited_for(settings: config.Config) -> None:
    drain = max(pool.timeouts.drain for pool in settings.pools)
    assert POD["terminationGracePeriodSeconds"] > drain + 5


def test_a_change_of_the_configuration_arrives() -> None:
    """A file that is mounted by itself (subPath) is never replaced; a folder's `..data` link is."""
    (mount,) = CONTAINER["volumeMounts"]
    (volume,) = POD["volumes"]
    (name,) = MANIFESTS["ConfigMap"]["data"]
    assert "subPath" not in mount
    assert volume == {
        "name": mount["name"],
        "configMap": {"name": MANIFESTS["ConfigMap"]["metadata"]["name"]},
    }
    assert CONTAINER["args"][:3] == ["run", "-c", f"{mount['mountPath']}/{name}"]


def test_the_pod_monitor_finds_the_pods() -> None:
    (monitor,) = documents("podmonitor.yaml")
    labels = MANIFESTS["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["spec"]["jobLabel"]] == "sockmap-lb", "the job that the alerts know"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in CONTAINER["ports"]}
