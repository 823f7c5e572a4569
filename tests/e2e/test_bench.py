"""The benchmark works: each kind of work and of peer, once and shortly, with every answer checked.

Its figures are not looked at: a timed test tells more about its neighbours than about what it times.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.bench import PRESETS, Preset
from tests.bench.generators import parse
from tests.e2e.processes import ROOT

_LIMIT = 240.0
_SMOKE = PRESETS["smoke"]
_FEW = Preset(("64x4x4", "memcached:2"), ("direct", "bare", "sockmap-lb", "haproxy"))


@pytest.mark.parametrize(("topology", "preset"), [("veth", _SMOKE), ("loopback", _FEW)])
def test_every_work_is_done_by_every_peer(topology: str, preset: Preset, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = (
        *(sys.executable, "-m", "tests.bench.bench", "--topology", topology),
        *("--works", ",".join(preset.works), "--targets", ",".join(preset.targets)),
        *("--rounds", "1", "--seconds", "0.3", "--warmup", "0.1", "--json", str(results)),
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    runs = json.loads(results.read_text(encoding="utf-8"))["runs"]
    assert {run["work"] for run in runs} == {str(parse(work)) for work in preset.works}
    assert {run["target"] for run in runs} == set(preset.targets)
    for run in runs:
        assert run["rate"] > 0, run
        assert (run["balancer_cpu_us"] is None) == (topology == "loopback"), run


def test_many_idle_clients(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = (sys.executable, "-m", "tests.bench.clients", "--clients", "20", "--json", str(results))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    assert [figures["clients"] for figures in json.loads(results.read_text(encoding="utf-8"))] == [20, 20]


def test_memory_of_idle_clients(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    short = ("--clients", "20", "--rounds", "1", "--settle", "0", "--targets", "sockmap-lb,haproxy")
    command = (sys.executable, "-m", "tests.bench.memory", *short, "--json", str(results))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    figures = {each["target"]: each for each in json.loads(results.read_text(encoding="utf-8"))["memory"]}
    # The balancer's ends: that of the client's connection, and of one to each backend or to one of them.
    assert 2 <= figures["sockmap-lb"]["sockets"] <= 4
    assert figures["haproxy"]["sockets"] == 2
    assert all(each["idle_process"] > 0 for each in figures.values())


def test_messages_spread_evenly_over_few_connections(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    short = ("--seconds", "1", "--targets", "sockmap-lb,haproxy", "--json", str(results))
    command = (sys.executable, "-m", "tests.bench.fairness", *short)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    figures = {each["target"]: each for each in json.loads(results.read_text(encoding="utf-8"))["fairness"]}
    for connections in ("1", "4", "16"):
        assert figures["sockmap-lb"]["largest_share"][connections] < 1.2
    assert figures["haproxy"]["largest_share"]["1"] == 3  # one connection is one backend: the tool measures
