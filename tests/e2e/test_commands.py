"""What the commands say when something is wrong, and how they end."""

import json
import pwd
import re
from pathlib import Path
from signal import Signals
from typing import Any

import pytest

import lb
from tests.e2e.balancer import Tree, configuration, dump, show
from tests.e2e.lab import Lab
from tests.e2e.messages import message
from tests.e2e.polling import eventually_equal
from tests.e2e.processes import SOCKMAP_LB, Done

NOBODY_THERE = ("127.0.0.1", 1)
WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")


@pytest.fixture(name="written")
def _written(tmp_path: Path) -> Path:
    return tmp_path / "test.yaml"


def run(lab: Lab, path: Path, tree: Tree, *prefix: str) -> Done:
    path.write_text(dump(tree), encoding="utf-8")
    return lab.run(*prefix, *SOCKMAP_LB, "run", "-c", str(path))


class TestConfiguration:
    WRONG = """\
admin: {address: 127.0.0.1:0}
listeners:
  - {name: rpc, address: 127.0.0.1, pool: workers}
pools:
  - name: workers
    balanse: random
    backends:
      - {name: a, address: 127.0.0.1:9000, weight: 1000}
"""

    @pytest.mark.parametrize("command", [("run", "-c"), ("check",)])
    def test_every_error_at_once(self, lab: Lab, written: Path, command: tuple[str, ...]) -> None:
        written.write_text(self.WRONG, encoding="utf-8")
        done = lab.run(*SOCKMAP_LB, *command, str(written))
        assert done.code == 1
        assert not done.out
        lines = done.err.splitlines()
        assert [line.split(": ")[:2] for line in lines] == [
            [f"{written}:3", "listeners[0].address"],
            [f"{written}:6", "pools[0].balanse"],
            [f"{written}:8", "pools[0].backends[0].weight"],
        ]
        assert all("; " in line for line in lines), "each has a remedy"
        assert "balance" in lines[1].partition("; ")[2]

    @pytest.mark.parametrize("command", [("run", "-c"), ("check",)])
    def test_no_such_file(self, lab: Lab, written: Path, command: tuple[str, ...]) -> None:
        done = lab.run(*SOCKMAP_LB, *command, str(written))
        assert done.code == 1
        assert done.complaint.startswith(f"{written}:1: file: cannot be read: No such file or directory; ")

    def test_check_of_a_good_file(self, lab: Lab, written: Path) -> None:
        written.write_text(dump(configuration([NOBODY_THERE])), encoding="utf-8")
        assert lab.run(*SOCKMAP_LB, "check", str(written)) == Done(
            0, f"{written}: fine: listeners: 1, pools: 1, backends: 1", ""
        )


class TestMachine:
    """What the machine refuses: one line that says what to do, and exit code 1."""

    def test_address_in_use(self, lab: Lab, written: Path) -> None:
        with lab.here.listen("127.0.0.1") as taken:
            address = show(taken.getsockname())
            done = run(lab, written, configuration([NOBODY_THERE], address=address))
        assert done.code == 1
        complaint = done.complaint
        assert complaint.startswith(f"sockmap-lb: cannot listen on {address}: Address already in use; ")
        assert "ss -ltnp" in complaint

    def test_admin_address_in_use(self, lab: Lab, written: Path) -> None:
        with lab.here.listen("127.0.0.1") as taken:
            address = show(taken.getsockname())
            done = run(lab, written, configuration([NOBODY_THERE]) | {"admin": {"address": address}})
        assert done.code == 1
        assert done.complaint.startswith(f"sockmap-lb: cannot listen on {address}: Address already in use; ")

    def test_address_of_another_machine(self, lab: Lab, written: Path) -> None:
        done = run(lab, written, configuration([NOBODY_THERE], address="192.0.2.1:7000"))
        assert done.code == 1
        assert re.search(r"192\.0\.2\.1:7000: .*; .*`ip address`", done.complaint)

    def test_without_privileges(self, lab: Lab, written: Path) -> None:
        done = run(lab, written, configuration([NOBODY_THERE]), *WITHOUT_PRIVILEGES)
        assert done.code == 1
        assert re.fullmatch(
            r"sockmap-lb: .* not permitted: .*CAP_BPF, CAP_NET_ADMIN.* missing; run as root, or .*",
            done.complaint,
        )

    @pytest.mark.parametrize("missing", ["cap_bpf", "cap_net_admin", "cap_perfmon"])
    def test_without_one_privilege(self, lab: Lab, written: Path, missing: str) -> None:
        """CAP_SYS_ADMIN stands in for some of them, so that has to go too."""
        dropped = f"cap_sys_admin,{missing}"
        done = run(lab, written, configuration([NOBODY_THERE]), "setpriv", "--bounding-set", _minus(dropped))
        assert done.code == 1
        assert f"not permitted: {missing.upper()} missing; run as root, or " in done.complaint

    def test_unknown_user(self, lab: Lab, written: Path) -> None:
        done = run(lab, written, configuration([NOBODY_THERE], runtime={"user": "no-such-user"}))
        assert done.code == 1
        assert done.complaint == (
            "sockmap-lb: there is no user 'no-such-user'; set runtime.user to an existing one, or to `none`"
        )

    def test_unknown_congestion_control(self, lab: Lab, written: Path) -> None:
        done = run(lab, written, {**configuration([NOBODY_THERE]), "tcp": {"congestion": "no-such"}})
        assert done.code == 1
        assert (
            "this machine has no congestion control algorithm no-such; run `modprobe tcp_no-such`" in done.err
        )

    def test_messages_that_do_not_fit_the_buffers_of_upstreams(self, lab: Lab, written: Path) -> None:
        """A listener that is bound by root may have larger ones than an upstream that is made without."""
        rmem_max = int(Path("/proc/sys/net/core/rmem_max").read_bytes())
        if rmem_max >= 2 * 64 << 20:
            pytest.skip("net.core.rmem_max allows the largest messages that there are")
        protocols = {"large": {"length": {"offset": 0, "width": 4}, "max_message": "64MiB"}}
        done = run(lab, written, configuration([NOBODY_THERE], protocol="large", protocols=protocols))
        assert done.code == 1
        assert f"run `sysctl -w net.core.rmem_max={2 * 64 << 20}`, or set max_message to at most " in done.err
        assert "Traceback" not in done.err

    def test_too_few_descriptors(self, lab: Lab, written: Path) -> None:
        done = run(lab, written, configuration([NOBODY_THERE]), "prlimit", "--nofile=150:150")
        assert done.code == 1
        assert "descriptors; raise `ulimit -Hn` to " in done.err.splitlines()[-1]


def _minus(names: str) -> str:
    return ",".join(f"-{name.removeprefix('cap_')}" for name in names.split(","))


class TestUsage:
    @pytest.mark.parametrize(
        "arguments", [(), ("serve",), ("run",), ("check",), ("run", "-c"), ("demo", "--seconds", "0")]
    )
    def test_wrong_usage(self, lab: Lab, arguments: tuple[str, ...]) -> None:
        done = lab.run(*SOCKMAP_LB, *arguments)
        assert done.code == 2
        assert not done.out
        assert "usage: sockmap-lb" in done.err
        assert "Traceback" not in done.err

    def test_version(self, lab: Lab) -> None:
        assert lab.run(*SOCKMAP_LB, "--version") == Done(0, f"sockmap-lb {lb.__version__}", "")


class TestDoctor:
    def test_on_this_machine(self, lab: Lab) -> None:
        done = lab.run(*SOCKMAP_LB, "doctor")
        assert done.code == 0, done.out + done.err
        assert not done.err
        assert done.out.startswith("CHECK")
        assert "FAILED" not in done.out
        assert done.out.count("self-test: ") >= 5

    def test_without_privileges(self, lab: Lab) -> None:
        done = lab.run(*WITHOUT_PRIVILEGES, *SOCKMAP_LB, "doctor")
        assert done.code == 1
        assert not done.err
        failed = [line for line in done.out.splitlines() if "FAILED" in line]
        assert any("CAP_BPF" in line for line in failed)


def _without_clocks(status: Any) -> Any:
    """The same, without what is another number at the next look."""
    status["uptime_seconds"] = None
    for pool in status["pools"]:
        for backend in pool["backends"]:
            backend["health_seconds"] = None
            if backend["last_check"] is not None:
                backend["last_check"]["seconds_ago"] = None
    return status


class TestStatus:
    def test_of_a_running_balancer(self, lab: Lab) -> None:
        backends = [lab.backend(name) for name in "ab"]
        balancer = lab.serve(backends, balance="round_robin", batch=1)
        client = balancer.connect()
        client.ask(*(message(number) for number in range(10)))
        admin = ("--admin", show(balancer.admin))
        done = lab.run(*SOCKMAP_LB, "status", *admin)
        assert (done.code, done.err) == (0, "")
        assert re.search(r"^serving, ready, up \d+ s, 3 of \d+ sockets$", done.out, re.MULTILINE)
        assert re.search(
            rf"^rpc +{re.escape(show(balancer.listeners['rpc']))} +length-prefixed +workers +1 +1 +0 +0$",
            done.out,
            re.MULTILINE,
        )
        for backend in backends:
            assert re.search(
                rf"^workers/{backend.name} +{re.escape(show(backend.endpoint))} +ready +up +1 +1 +0 +5 +5$",
                done.out,
                re.MULTILINE,
            )
        done = lab.run(*SOCKMAP_LB, "status", "--json", *admin)
        assert (done.code, done.err) == (0, "")
        shown, asked = json.loads(done.out), balancer.status()
        assert _without_clocks(shown) == _without_clocks(asked)

    def test_the_address_may_come_from_the_environment(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend()])
        done = lab.run("env", f"SOCKMAP_LB_ADMIN={show(balancer.admin)}", *SOCKMAP_LB, "status")
        assert (done.code, done.err) == (0, "")
        assert "serving, ready" in done.out

    def test_nobody_answers(self, lab: Lab) -> None:
        done = lab.run(*SOCKMAP_LB, "status", "--admin", "127.0.0.1:1")
        assert done.code == 1
        assert done.complaint.startswith("sockmap-lb: nobody answers at 127.0.0.1:1: Connection refused; ")

    def test_a_reader_that_leaves_early(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend()])
        command = f"{' '.join(SOCKMAP_LB)} status --json --admin {show(balancer.admin)} | true"
        done = lab.run("bash", "-c", command)
        assert "Traceback" not in done.err


class TestRun:
    def test_logs_for_machines(self, lab: Lab, written: Path) -> None:
        written.write_text(dump(configuration([lab.backend().endpoint])), encoding="utf-8")
        balancer = lab.start(*SOCKMAP_LB, "run", "-c", str(written), "--log-format", "json")
        balancer.stderr.wait_for('"message": "admin: http://')
        balancer.signal(Signals.SIGTERM)
        assert balancer.wait() == 0
        lines = [json.loads(line) for line in balancer.stderr.text.splitlines()]
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
        assert lines[-1]["message"] == "stopped"

    def test_sighup_does_not_end_it(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend()])
        client = balancer.connect()
        balancer.process.signal(Signals.SIGHUP)
        balancer.process.stderr.wait_for("SIGHUP")
        assert client.ask(message(1))


class TestDemo:
    def test_a_second_of_it(self, lab: Lab) -> None:
        done = lab.run(*SOCKMAP_LB, "demo", "--seconds", "1")
        assert done.code == 0, done.err
        summary = re.search(r"([\d,]+) requests answered, 0 answers wrong, 0 messages dropped", done.out)
        assert summary, done.out
        assert int(summary[1].replace(",", "")) > 100
        assert "Traceback" not in done.err


class TestPrivileges:
    def test_none_is_left_while_it_serves(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend()])
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{balancer.pid}/status").read_text(encoding="utf-8").splitlines()
        )
        nobody = pwd.getpwnam("nobody")
        assert set(status["Uid"].split()) == {str(nobody.pw_uid)}
        assert set(status["Gid"].split()) == {str(nobody.pw_gid)}
        assert not status["Groups"].split()
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert status["NoNewPrivs"] == "1"
        for thread in Path(f"/proc/{balancer.pid}/task").iterdir():
            text = (thread / "status").read_text(encoding="utf-8")
            assert f"Uid:\t{nobody.pw_uid}\t" in text
            assert "CapEff:\t0000000000000000" in text
        assert balancer.connect().ask(message(1))

    def test_a_user_that_stays(self, lab: Lab) -> None:
        balancer = lab.serve([lab.backend()], runtime={"user": "none"})
        text = Path(f"/proc/{balancer.pid}/status").read_text(encoding="utf-8")
        assert "Uid:\t0\t0\t0\t0" in text
        assert re.search(r"^CapEff:\t0+$", text, re.MULTILINE)
        eventually_equal(lambda: balancer.get("/readyz")[0], 200)
