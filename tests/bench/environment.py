"""What a measurement must say of where it was made."""

import os
from pathlib import Path

from tests.bench import peers
from tests.bench.network import Network, congestion_control

_SYSCTLS = ("tcp_rmem", "tcp_wmem", "tcp_autocorking", "tcp_slow_start_after_idle", "tcp_min_tso_segs")


def describe(network: Network) -> dict[str, str]:
    """Machine, versions, and what of the kernel's settings moves the figures."""
    with network.balancer.entered():
        sysctls = {
            f"net.ipv4.{name}": " ".join(Path(f"/proc/sys/net/ipv4/{name}").read_text().split())
            for name in _SYSCTLS
        }
    return {
        "Linux": os.uname().release,
        "CPU": f"{os.cpu_count()} x {_processor()}",
        "congestion": congestion_control(network.balancer),
        **{
            kind: version
            for kind, version in peers.versions().items()
            if version is not None and version != "-"
        },
        **sysctls,
        "offloads": network.offloads,
        "routes": network.routes,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine
