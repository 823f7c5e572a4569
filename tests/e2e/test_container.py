"""The image: built from deploy/Dockerfile, run with as little as it needs."""

import json
import pwd
from signal import Signals

import pytest

from tests.e2e.balancer import Balancer, Tree, configuration, dump
from tests.e2e.containers import CAPABILITIES, CHANGE_USER, SECCOMP, Container, Podman
from tests.e2e.lab import Lab
from tests.e2e.messages import message
from tests.e2e.polling import PATIENCE
from tests.e2e.processes import Done, run

ADMIN = {"admin": {"address": "127.0.0.1:9901"}}
NOBODY_THERE = ("127.0.0.1", 1)


# The first test waits for the image.
pytestmark = pytest.mark.timeout(900 * PATIENCE)


def serve(lab: Lab, container: Container) -> Balancer:
    """In the network of the test, with one backend, asked for a message."""
    tree = lab.tree([lab.backend()]) | ADMIN
    balancer = lab.balancer(tree, launch=container.launch).wait_ready()
    client = balancer.connect()
    assert len(client.ask(*(message(number) for number in range(100)))) == 100
    assert balancer.metrics().by("path", "datapath_messages_total") == {"kernel": 200, "userspace": 0}
    return balancer


def refuse(lab: Lab, container: Container, *, tree: Tree | None = None) -> Done:
    path = lab.folder / "config.yaml"
    path.write_text(dump(tree or configuration([NOBODY_THERE])), encoding="utf-8")
    process = container.launch(path)
    try:
        code = process.wait(30 * PATIENCE)
    finally:
        process.close()
    return Done(code, process.stdout.text, process.stderr.text)


def test_with_three_capabilities(lab: Lab, podman: Podman) -> None:
    """It stays root, as without CAP_SETUID it must, and can do nothing with that."""
    container = Container(podman, lab.here.name, "--security-opt", "no-new-privileges")
    balancer = serve(lab, container)
    status = container.status()
    assert set(status["Uid"].split()) == {"0"}
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    # Scheduled by systemd, where there is one.
    assert run(podman.command("healthcheck", "run", container.name)).code == 0
    balancer.close_clients()
    ended = balancer.stop()
    assert ended.code == 0
    assert ended.log.splitlines()[-1].endswith("INFO stopped")


def test_as_another_user(lab: Lab, podman: Podman) -> None:
    container = Container(podman, lab.here.name, capabilities=(*CAPABILITIES, *CHANGE_USER))
    serve(lab, container)
    status = container.status()
    assert set(status["Uid"].split()) == {str(pwd.getpwnam("nobody").pw_uid)}
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind


def test_as_another_user_from_the_start(lab: Lab, podman: Podman) -> None:
    """Podman makes the capabilities of such a user ambient."""
    container = Container(podman, lab.here.name, "--user", "nobody")
    serve(lab, container)
    status = container.status()
    assert "0" not in status["Uid"].split()
    assert int(status["CapEff"], 16) == 0


@pytest.mark.parametrize("missing", CAPABILITIES)
def test_without_one_capability(lab: Lab, podman: Podman, missing: str) -> None:
    left = [capability for capability in CAPABILITIES if capability != missing]
    done = refuse(lab, Container(podman, lab.here.name, capabilities=left))
    assert done.code == 1
    assert (
        f"sockmap-lb: loading BPF programs is not permitted: CAP_{missing} missing;"
        " run as root, or in a container with --cap-add BPF,NET_ADMIN,PERFMON" in done.err.splitlines()
    )


def test_with_a_profile_that_forbids_bpf(lab: Lab, podman: Podman) -> None:
    forbids = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    }
    profile = lab.folder / "seccomp.json"
    profile.write_text(json.dumps(forbids), encoding="utf-8")
    done = refuse(lab, Container(podman, lab.here.name, "--security-opt", f"seccomp={profile}"))
    assert done.code == 1
    assert (
        "sockmap-lb: loading BPF programs is not permitted, although no capability is missing;"
        " let the seccomp profile allow bpf(2): --security-opt seccomp=deploy/seccomp.json"
        in done.err.splitlines()
    )


def test_doctor(lab: Lab, podman: Podman) -> None:
    done = run(Container(podman, lab.here.name).command("doctor"))
    assert done.code == 0, done.out + done.err
    assert "FAILED" not in done.out


def test_the_profile_forbids_what_the_balancer_has_no_use_for(lab: Lab, podman: Podman) -> None:
    """Even where a capability would allow it."""
    for program in (["unshare", "--net", "true"], ["mount", "-t", "tmpfs", "none", "/mnt"]):
        options = ("--entrypoint", program[0])
        done = run(
            Container(podman, lab.here.name, *options, capabilities=["SYS_ADMIN"]).command(*program[1:])
        )
        assert done.code != 0
        assert "Function not implemented" in done.err, done.err
    allowed = {name for rule in json.loads(SECCOMP.read_text())["syscalls"] for name in rule["names"]}
    assert not allowed & {"mount", "unshare", "setns", "ptrace", "clone3", "io_uring_setup", "init_module"}


def test_the_root_is_read_only(lab: Lab, podman: Podman) -> None:
    container = Container(podman, lab.here.name, "--entrypoint", "touch")
    for path in ("/opt/x", "/tmp/x", "/run/x"):
        done = run(container.command(path))
        assert "Read-only file system" in done.err


def test_what_the_image_says(lab: Lab, podman: Podman) -> None:
    """Docker and Kubernetes go by this; neither needs a shell."""
    (image,) = json.loads(podman.do("inspect", podman.image))
    assert image["Config"]["Entrypoint"] == ["sockmap-lb"]
    assert image["Config"]["Cmd"] == ["run", "-c", "/etc/sockmap-lb/config.yaml"]
    assert image["Healthcheck"]["Test"] == ["CMD", "sockmap-lb", "status"]
    assert image["Size"] < 256 << 20
    for absent in ("pip", "setuptools", "gcc"):
        find = Container(podman, lab.here.name, "--entrypoint=find")
        assert not run(find.command("/opt", "/usr/bin", "-name", absent)).out


def test_sigterm_while_it_starts(lab: Lab, podman: Podman) -> None:
    """A container's first process ignores signals that it does not handle; nobody waits for the SIGKILL."""
    path = lab.folder / "config.yaml"
    path.write_text(dump(lab.tree([NOBODY_THERE]) | ADMIN), encoding="utf-8")
    container = Container(podman, lab.here.name)
    process = container.launch(path)
    try:
        process.stderr.wait_for("serving as", limit=30 * PATIENCE)
        process.signal(Signals.SIGTERM)
        assert process.wait(30 * PATIENCE) == 0
    finally:
        process.close()
