"""``sockmap-lb doctor``: would ``run`` work on this machine, and if not, what is missing?"""

import argparse
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

from lb.cli.table import render
from lb.dataplane import MachineError, load, selftest, sockets
from lb.dataplane.loader import CAP_ADD, missing_capabilities
from lb.libbpf import LibbpfMissingError, libbpf_version

_FEW_DESCRIPTORS = 4096

Finding = tuple[str, str, str]  # what, "ok" | "warning" | "FAILED", detail or remedy


def main(_: argparse.Namespace) -> int:
    """Prints the findings; 0 if ``run`` would work."""
    findings = list(examine())
    print(render(("CHECK", "RESULT", "DETAIL"), findings))
    return 1 if any(result == "FAILED" for _, result, _ in findings) else 0


def examine() -> Iterator[Finding]:
    """Looks at one thing after the other; what needs the one before is left out when that fails."""
    yield ("kernel", "ok", os.uname().release)
    yield from _btf()
    yield from _capabilities()
    yield from _descriptors()
    yield from _receive_buffer()
    try:
        yield ("libbpf", "ok", libbpf_version())
    except LibbpfMissingError as error:
        yield ("libbpf", "FAILED", str(error))
        return
    try:
        plane = load(selftest.SIZES)
    except MachineError as error:
        yield ("load the programs", "FAILED", str(error))
        return
    yield ("load the programs", "ok", "parser and verdict accepted and attached")
    try:
        for check in selftest.run(plane):
            if check.problem is None:
                yield (f"self-test: {check.name}", "ok", "")
            else:
                yield (
                    f"self-test: {check.name}",
                    "FAILED",
                    f"{check.problem}; this kernel cannot be trusted with messages, use a newer one",
                )
    finally:
        plane.close()


def _btf() -> Iterator[Finding]:
    path = Path("/sys/kernel/btf/vmlinux")
    if path.exists():
        yield ("BTF", "ok", str(path))
    else:
        yield ("BTF", "FAILED", f"no {path}; use a kernel with CONFIG_DEBUG_INFO_BTF=y, or mount /sys")


def _capabilities() -> Iterator[Finding]:
    if missing := missing_capabilities():
        yield (
            "capabilities",
            "FAILED",
            f"missing {', '.join(missing)}; run as root, or in a container with --cap-add {CAP_ADD}",
        )
    else:
        yield ("capabilities", "ok", "all that loading needs")


def _descriptors() -> Iterator[Finding]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < _FEW_DESCRIPTORS:
        yield ("descriptors", "warning", f"at most {hard}, so as many connections; raise `ulimit -Hn`")
    else:
        yield ("descriptors", "ok", "unlimited" if hard == resource.RLIM_INFINITY else f"at most {hard}")


def _receive_buffer() -> Iterator[Finding]:
    limit = _rmem_max()
    largest = sockets.largest_message(limit)
    detail = f"net.core.rmem_max = {limit}: messages of up to {largest} bytes"
    if largest >= 1 << 20:
        yield ("receive buffers", "ok", detail)
    else:
        yield (
            "receive buffers",
            "warning",
            f"{detail}; for the default max_message of 1MiB run `sysctl -w net.core.rmem_max={2 << 20}`",
        )


def _rmem_max() -> int:
    """``net.core.rmem_max``, as a socket has it: 6.1 shows the file in the first network namespace only."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # the kernel doubles it
