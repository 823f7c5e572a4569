"""``nsd`` with a zone of many names, each with records of its own."""

from pathlib import Path

from tests.e2e.lab import Lab
from tests.e2e.namespaces import Namespace
from tests.e2e.processes import Process

ZONE = "example.test."
NAMES = 3000

_CONFIGURATION = """\
server:
    ip-address: {address}
    port: {port}
    zonesdir: "{folder}"
    database: ""
    pidfile: ""
    xfrdfile: "{folder}/xfrd.state"
    xfrdir: "{folder}"
    zonelistfile: "{folder}/zone.list"
    username: ""
    server-count: 1
    tcp-count: 500
    tcp-timeout: 60
    verbosity: 1
remote-control:
    control-enable: no
zone:
    name: {zone}
    zonefile: zone
    provide-xfr: 0.0.0.0/0 NOKEY
    provide-xfr: ::0/0 NOKEY
"""


def name(number: int) -> str:
    """The owner of the records with this number."""
    return f"n{number}.{ZONE}"


def address(number: int) -> str:
    """Its A record."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def text(number: int) -> str:
    """Its TXT record; some are long."""
    return f"text of {number} " + "." * (number % 200)


def write_zone(path: Path) -> None:
    """A zone file with all names."""
    lines = [
        f"$ORIGIN {ZONE}",
        "$TTL 300",
        "@ SOA ns hostmaster 1 3600 900 86400 300",
        "@ NS ns",
        "ns A 127.0.0.1",
    ]
    lines += [f'n{number} A {address(number)}\nn{number} TXT "{text(number)}"' for number in range(NAMES)]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def configuration(host: str, folder: Path, port: int = 53) -> str:
    """What ``nsd`` reads, to serve the zone that is in a folder."""
    return _CONFIGURATION.format(address=host, port=port, folder=folder, zone=ZONE)


def start(lab: Lab, where: Namespace, host: str) -> Process:
    """A server at port 53 of an address inside a namespace."""
    folder = lab.folder / f"nsd-{host.replace(':', '-')}"
    folder.mkdir()
    write_zone(folder / "zone")
    settings = folder / "nsd.conf"
    settings.write_text(configuration(host, folder), encoding="utf-8")
    process = lab.start("nsd", "-d", "-c", str(settings), where=where)
    process.stderr.wait_for("nsd started")
    return process
