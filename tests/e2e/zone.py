"""``nsd`` with a zone that a test changes, and the resolver of a namespace that asks it."""

import os
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from signal import Signals

from tests.e2e.lab import Lab

ZONE = "backends.test"
BROKEN = "broken.test"  # names here are answered with SERVFAIL
_SERVER = "127.0.0.53"
_CONFIGURATION = """\
server:
    ip-address: {address}
    port: 53
    zonesdir: "{folder}"
    database: ""
    pidfile: ""
    xfrdfile: "{folder}/xfrd.state"
    xfrdir: "{folder}"
    zonelistfile: "{folder}/zone.list"
    username: ""
    server-count: 1
    verbosity: 1
remote-control:
    control-enable: no
zone:
    name: {zone}
    zonefile: zone
zone:
    name: {broken}
    zonefile: missing
"""


class Zone:
    """Names of :data:`ZONE`, which the programs that are started from here on can look up."""

    def __init__(self, lab: Lab, **names: Sequence[str]) -> None:
        folder = lab.folder / "nsd"
        folder.mkdir()
        self._file = folder / "zone"
        self._serial = 0
        self._write(names)
        settings = folder / "nsd.conf"
        settings.write_text(
            _CONFIGURATION.format(address=_SERVER, folder=folder, zone=ZONE, broken=BROKEN), encoding="ascii"
        )
        lab.here.write_etc("resolv.conf", f"nameserver {_SERVER}\noptions timeout:2 attempts:1\n")
        lab.here.write_etc("nsswitch.conf", "hosts: files dns\n")
        self.process = lab.start("nsd", "-d", "-c", str(settings))
        self.process.stderr.wait_for("nsd started")

    def set(self, **names: Sequence[str]) -> None:
        """Has these names and no others; it may take a moment."""
        self._write(names)
        self.process.signal(Signals.SIGHUP)

    def fall_silent(self) -> None:
        """Answers nothing any more; questions wait."""
        for pid in _family(self.process.pid):
            os.kill(pid, Signals.SIGSTOP)

    def speak(self) -> None:
        """Answers again."""
        for pid in _family(self.process.pid):
            os.kill(pid, Signals.SIGCONT)

    def _write(self, names: Mapping[str, Sequence[str]]) -> None:
        self._serial += 1
        lines = [
            f"$ORIGIN {ZONE}.",
            "$TTL 1",
            f"@ SOA ns hostmaster {self._serial} 3600 900 86400 1",
            "@ NS ns",
        ]
        lines += [f"ns A {_SERVER}"]
        for name, hosts in names.items():
            lines += [f"{name} {'A' if ip_address(host).version == 4 else 'AAAA'} {host}" for host in hosts]
            if not hosts:
                lines.append(f'{name} TXT "no address"')
        new = Path(f"{self._file}.new")
        new.write_text("\n".join(lines) + "\n", encoding="ascii")
        new.replace(self._file)


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [pid, *(each for child in children for each in _family(int(child)))]
