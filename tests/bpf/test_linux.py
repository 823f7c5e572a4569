import os
import subprocess
import sys
from pathlib import Path

import pytest

from lb.libbpf import effective_capabilities

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROOT = Path(__file__).parents[2]
TIMEOUT = 20  # seconds, for what ends at once

# Privileges cannot be taken back: each test gives its own process away.
PRELUDE = """
import errno, os
from pathlib import Path
from lb.libbpf import *

def status(name):
    return Path("/proc/self/status").read_bytes().partition(f"\\n{name}:".encode())[2].split()[0]

def refused(number, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == number, error
    else:
        raise AssertionError(f"{call.__name__} is allowed")
"""


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", PRELUDE + code], cwd=ROOT, check=True, timeout=TIMEOUT)


def test_effective_capabilities_of_root() -> None:
    cap_setpcap, cap_bpf = 8, 39
    assert {cap_setpcap, cap_bpf} <= effective_capabilities()


def test_cleared_capabilities_are_gone_from_every_set() -> None:
    run("""
clear_capabilities()
assert effective_capabilities() == frozenset()
for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
    assert int(status(name), 16) == 0, name
refused(errno.EPERM, os.chroot, "/")
clear_capabilities()
""")


def test_the_bounding_set_can_be_dropped_with_privilege_only() -> None:
    run("""
drop_bounding_set()
assert int(status("CapBnd"), 16) == 0
assert effective_capabilities()
clear_capabilities()
refused(errno.EPERM, drop_bounding_set)
""")


def test_a_program_started_without_bounding_set_has_no_capability() -> None:
    run("""
import subprocess, sys
drop_bounding_set()
code = "from lb.libbpf import effective_capabilities; assert not effective_capabilities()"
subprocess.run([sys.executable, "-c", code], check=True, timeout=10)
""")


def test_no_new_privs() -> None:
    run("""
assert status("NoNewPrivs") == b"0"
set_no_new_privs()
assert status("NoNewPrivs") == b"1"
""")
