"""HAProxy and nginx: in front of the balancer or behind it, saying and reading PROXY headers.

Each listens at a port that was free, and logs a line for each connection that has ended: the address and port
of the client, and those that the client connected to.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.balancer import show
from tests.e2e.lab import Lab
from tests.e2e.namespaces import Endpoint, Namespace
from tests.e2e.polling import eventually

_HAPROXY = """\
global
    log stdout format raw local0 info
defaults
    mode tcp
    log global
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    log-format "%ci %cp %[dst] %[dst_port]"
frontend front
    bind {listen} {accept}
    default_backend back
backend back
    server only {target} {send}
"""

_NGINX = """\
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events {{}}
stream {{
    log_format who "{log}";
    access_log {folder}/access.log who;
    server {{
        listen {listen}{accept};
        proxy_pass {target};
        {send}
    }}
}}
"""
_CLIENT = "$remote_addr $remote_port $server_addr $server_port"
_PROXIED = "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that listens."""

    endpoint: Endpoint
    log: Path

    def connections(self) -> list[tuple[Endpoint, Endpoint]]:
        """Those of clients that have ended: both ends, as the clients see them."""
        text = self.log.read_text(encoding="ascii") if self.log.exists() else ""
        lines = re.findall(r"^(\S+) (\d+) (\S+) (\d+)$", text, re.MULTILINE)
        return [((line[0], int(line[1])), (line[2], int(line[3]))) for line in lines]


def haproxy(
    lab: Lab, target: Endpoint, *, host: str = "127.0.0.1", accept: str = "", send: str = ""
) -> Proxy:
    """HAProxy; ``accept`` and ``send`` are the keywords of its `bind` and `server` lines."""
    endpoint = host, lab.here.reserve(host)
    folder = _folder(lab, endpoint)
    settings = folder / "haproxy.cfg"
    settings.write_text(
        _HAPROXY.format(listen=_bind(endpoint), target=show(target), accept=accept, send=send),
        encoding="ascii",
    )
    log = folder / "access.log"
    lab.start("sh", "-c", f"exec haproxy -db -f {settings} > {log}")
    return _wait(lab.here, Proxy(endpoint, log))


def nginx(
    lab: Lab, target: Endpoint, *, host: str = "127.0.0.1", accept: bool = False, send: bool = False
) -> Proxy:
    """nginx; it sends version 1."""
    endpoint = host, lab.here.reserve(host)
    folder = _folder(lab, endpoint)
    settings = folder / "nginx.conf"
    settings.write_text(
        _NGINX.format(
            folder=folder,
            log=_PROXIED if accept else _CLIENT,
            listen=show(endpoint),
            accept=" proxy_protocol" if accept else "",
            target=show(target),
            send="proxy_protocol on;" if send else "",
        ),
        encoding="ascii",
    )
    lab.start("nginx", "-c", str(settings))
    return _wait(lab.here, Proxy(endpoint, folder / "access.log"))


def _bind(endpoint: Endpoint) -> str:
    """HAProxy takes an address with colons and no brackets too, the last one before the port."""
    return f"{endpoint[0]}:{endpoint[1]}"


def _folder(lab: Lab, endpoint: Endpoint) -> Path:
    folder = lab.folder / f"proxy-{endpoint[1]}"
    folder.mkdir()
    return folder


def _wait(where: Namespace, proxy: Proxy) -> Proxy:
    """Until it listens; nobody connects, as that would be a client."""
    table = "tcp6" if ":" in proxy.endpoint[0] else "tcp"
    wanted = f":{proxy.endpoint[1]:04X} "

    def listens() -> bool:
        with where.entered():
            lines = Path(f"/proc/thread-self/net/{table}").read_text(encoding="ascii").splitlines()
        return any(wanted in line.partition(" 0A ")[0] for line in lines if " 0A " in line)

    eventually(listens, what=f"{proxy.endpoint} listens")
    return proxy
