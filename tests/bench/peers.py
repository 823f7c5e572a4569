"""What stands between clients and backends: the balancer, and what it is compared with.

Each is a kind with a few settings: ``sockmap-lb/shared=2/batch=1``, ``haproxy/threads=2``, ``nginx``. A peer
of another kind is one class here.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from lb.cli.status import fetch
from lb.status import ServerStatus
from tests.bench.errors import ProgramError
from tests.bench.network import Place
from tests.bench.processes import ROOT, START_LIMIT, compile_bpf, running

STREAM, DNS, MEMCACHED = "length-prefixed", "dns", "memcached-binary"


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a peer runs, and what is behind it."""

    place: Place
    directory: Path
    backends: Mapping[str, str]
    protocol: str = STREAM
    max_connections: int = 4096
    check_ms: int | None = None  # between health checks; None: no checks


class Peer(Protocol):
    """It serves at ``targets``."""

    targets: list[str]

    @property
    def pid(self) -> int | None:
        """Of its process."""


class Direct:
    """Connections spread over the backends, nothing between."""

    defaults: ClassVar[dict[str, str]] = {}
    protocols: ClassVar[tuple[str, ...]] = (STREAM, MEMCACHED)  # dnsperf asks one address
    pid = None

    def __init__(self, scene: Scene, _settings: Mapping[str, str], _stack: contextlib.ExitStack) -> None:
        self.targets = list(scene.backends.values())

    @staticmethod
    def version() -> str | None:
        """There is always one."""
        return "-"


class Balancer:
    """`sockmap-lb run`.

    Settings: ``balance``, ``batch``, ``shared`` (connections to each backend that all clients share; 0: each
    has its own), ``connect`` (``eager``, ``on_demand``), ``rules`` (of the listener; only the last one
    matches), ``congestion`` (control algorithm of its connections; ``-``: the machine's).
    """

    defaults: ClassVar[dict[str, str]] = {
        "balance": "least_outstanding",
        "batch": "64",
        "shared": "0",
        "connect": "eager",
        "congestion": "-",
        "rules": "0",
    }
    protocols: ClassVar[tuple[str, ...]] = (STREAM, DNS, MEMCACHED)

    def __init__(self, scene: Scene, settings: Mapping[str, str], stack: contextlib.ExitStack) -> None:
        """Waits until it serves.

        Raises:
            ProgramError: it did not start.
        """
        self.log: list[str] = []
        self.targets: list[str] = []
        self.admin = ""
        self._place = scene.place
        self._serving = threading.Event()
        configuration = scene.directory / f"sockmap-lb-{id(self)}.yaml"
        configuration.write_text(_balancer_yaml(scene, {**self.defaults, **settings}), encoding="utf-8")
        with scene.place.entered():
            self._process = subprocess.Popen(
                (sys.executable, "-m", "lb", "run", "-c", configuration),
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
        self.pid = self._process.pid
        reader = threading.Thread(target=self._read_log, name="log of the balancer")
        stack.callback(reader.join)
        stack.enter_context(running(self._process))
        reader.start()
        if not self._serving.wait(START_LIMIT) or not self.admin:
            raise ProgramError(f"the balancer did not start: {''.join(self.log[-3:]).strip()}")

    def status(self) -> ServerStatus:
        """The document of ``/status``."""
        with self._place.entered():
            return fetch(self.admin)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                self.log.append(line)
                if " listener bench: " in line:
                    self.targets.append(line.split(" listener bench: ")[1].split(",")[0])
                elif " admin: http://" in line:
                    self.admin = line.split(" admin: http://")[1].strip()
                    self._serving.set()
        self._serving.set()

    @staticmethod
    def version() -> str | None:
        """This tree."""
        done = subprocess.run(
            ("git", "describe", "--always", "--dirty"),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() or "-"


def _balancer_yaml(scene: Scene, settings: Mapping[str, str]) -> str:
    shared = int(settings["shared"])
    sharing = f"    connect: {settings['connect']}\n"
    if shared:
        sharing = f"    connections: shared\n    connections_per_backend: {shared}\n"
    check = scene.check_ms
    checks = f"    health_check: {{interval: {check}ms, rise: 1}}\n" if check is not None else ""
    listed = "".join(
        f"      - {{name: {name}, address: {address}}}\n" for name, address in scene.backends.items()
    )
    congestion = settings["congestion"]
    tcp = f"tcp: {{congestion: {congestion}}}\n" if congestion != "-" else ""
    return (
        "admin: {address: 127.0.0.1:0}\n"
        f"{tcp}"
        f"runtime: {{max_connections: {scene.max_connections}}}\n"
        "listeners:\n"
        f"  - name: bench\n    address: {scene.place.host}:0\n"
        f"    protocol: {scene.protocol}\n    pool: bench\n"
        f"{_rules_yaml(scene.protocol, int(settings['rules']))}"
        "pools:\n"
        "  - name: bench\n"
        f"    balance: {settings['balance']}\n"
        f"    batch: {settings['batch']}\n"
        f"{sharing}"
        f"{checks}"
        "    backends:\n" + listed
    )


def _rules_yaml(protocol: str, count: int) -> str:
    """Rules that all but the last one miss; on several fields, which the balancer cannot look at together."""
    if not count:
        return ""
    matches = [
        f"{{dns-name: d{number}.example}}"
        if protocol == DNS
        # In the filling of the smallest message: behind its header and stamp, in front of its second id.
        else f"{{offset: {16 + 4 * (number % 11)}, width: 4, equals: {0xFFFFFF00 + number:#x}}}"
        for number in range(count - 1)
    ]
    missed = "".join(f"      - {{match: {match}, then: deny}}\n" for match in matches)
    return f"    rules:\n{missed}      - {{then: {{pool: bench}}}}\n"


class Bare:
    """The least that a proxy in a sockmap can do: bare.py. Not a peer, but a floor under what it costs."""

    defaults: ClassVar[dict[str, str]] = {}
    protocols: ClassVar[tuple[str, ...]] = (STREAM,)

    def __init__(self, scene: Scene, _settings: Mapping[str, str], stack: contextlib.ExitStack) -> None:
        with scene.place.entered():
            process = subprocess.Popen(
                (
                    *(sys.executable, "-m", "tests.bench.bare", "--listen", f"{scene.place.host}:0"),
                    *("--object", compile_bpf(scene.directory, "bare")),
                    *("--connections", str(scene.max_connections), *scene.backends.values()),
                ),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
        stack.enter_context(running(process))
        assert process.stdout is not None
        stack.enter_context(process.stdout)
        self.pid: int | None = process.pid
        self.targets = [process.stdout.readline().strip()]
        if not self.targets[0]:
            raise ProgramError("bare did not start")

    @staticmethod
    def version() -> str | None:
        """That of this tree; None if there is no clang to build it."""
        return "-" if shutil.which("clang") else None


class HAProxy:
    """HAProxy in tcp mode, which spreads connections, not messages. Setting: ``threads``."""

    defaults: ClassVar[dict[str, str]] = {"threads": "1"}
    protocols: ClassVar[tuple[str, ...]] = (STREAM, DNS, MEMCACHED)

    def __init__(self, scene: Scene, settings: Mapping[str, str], stack: contextlib.ExitStack) -> None:
        threads = {**self.defaults, **settings}["threads"]
        # Its clients connect to a socket that is there before it starts, so nothing has to wait for it.
        with scene.place.entered():
            listener = stack.enter_context(socket.create_server((scene.place.host, 0), backlog=4096))
        check = f" check inter {scene.check_ms} rise 1" if scene.check_ms is not None else ""
        servers = "".join(f"  server {name} {address}{check}\n" for name, address in scene.backends.items())
        configuration = scene.directory / f"haproxy-{id(self)}.cfg"
        configuration.write_text(
            f"global\n  nbthread {threads}\n  maxconn {scene.max_connections}\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
            f"listen bench\n  bind fd@{listener.fileno()}\n  balance roundrobin\n{servers}",
            encoding="utf-8",
        )
        with scene.place.entered():
            process = subprocess.Popen(
                ("haproxy", "-db", "-q", "-f", configuration), pass_fds=(listener.fileno(),), text=True
            )
        stack.enter_context(running(process))
        self.pid: int | None = process.pid
        self.targets = [f"{scene.place.host}:{listener.getsockname()[1]}"]

    @staticmethod
    def version() -> str | None:
        """Its version; None if it is not installed."""
        return _version("haproxy", "-v")


class Nginx:
    """nginx's stream module, which copies bytes as HAProxy's tcp mode does. Setting: ``workers``."""

    defaults: ClassVar[dict[str, str]] = {"workers": "1"}
    protocols: ClassVar[tuple[str, ...]] = (STREAM, DNS, MEMCACHED)
    _module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

    def __init__(self, scene: Scene, settings: Mapping[str, str], stack: contextlib.ExitStack) -> None:
        workers = {**self.defaults, **settings}["workers"]
        port = scene.place.namespace.reserve(scene.place.host)
        folder = scene.directory / f"nginx-{id(self)}"
        folder.mkdir()
        servers = " ".join(f"server {address};" for address in scene.backends.values())
        configuration = folder / "nginx.conf"
        configuration.write_text(
            f"load_module {self._module};\n"
            f"daemon off; worker_processes {workers}; pid {folder}/pid; error_log stderr emerg;\n"
            f"worker_rlimit_nofile {2 * scene.max_connections + 64};\n"
            f"events {{ worker_connections {2 * scene.max_connections}; }}\n"
            f"stream {{ upstream bench {{ {servers} }}\n"
            f"  server {{ listen {scene.place.host}:{port} backlog=4096; proxy_pass bench; }} }}\n",
            encoding="utf-8",
        )
        with scene.place.entered():
            process = subprocess.Popen(("nginx", "-p", folder, "-c", configuration), text=True)
        stack.enter_context(running(process))
        self.pid: int | None = process.pid
        self.targets = [f"{scene.place.host}:{port}"]
        await_port(scene.place, self.targets[0])

    @classmethod
    def version(cls) -> str | None:
        """Its version; None if it or its stream module is not installed."""
        return _version("nginx", "-v") if cls._module.exists() else None


class Dnsdist:
    """dnsdist, which like sockmap-lb sends each query where it likes; over TCP to the backends too."""

    defaults: ClassVar[dict[str, str]] = {"threads": "1"}
    protocols: ClassVar[tuple[str, ...]] = (DNS,)

    def __init__(self, scene: Scene, settings: Mapping[str, str], stack: contextlib.ExitStack) -> None:
        threads = {**self.defaults, **settings}["threads"]
        target = f"{scene.place.host}:{scene.place.namespace.reserve(scene.place.host)}"
        servers = "".join(
            f'newServer{{address="{address}", name="{name}", tcpOnly=true, maxInFlight=1024, sockets=1,'
            f' healthCheckMode="up"}}\n'
            for name, address in scene.backends.items()
        )
        configuration = scene.directory / f"dnsdist-{id(self)}.conf"
        configuration.write_text(
            f'setSecurityPollSuffix("")\nsetMaxTCPClientThreads({threads})\nsetACL({{"0.0.0.0/0"}})\n'
            f'setServerPolicy(leastOutstanding)\nsetLocal("{target}", {{maxInFlight=1024}})\n{servers}',
            encoding="utf-8",
        )
        with scene.place.entered():
            process = subprocess.Popen(
                ("dnsdist", "--supervised", "--disable-syslog", "-C", configuration),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        stack.enter_context(running(process))
        self.pid: int | None = process.pid
        self.targets = [target]
        await_port(scene.place, target)

    @staticmethod
    def version() -> str | None:
        """Its version; None if it is not installed."""
        return _version("dnsdist", "--version")


KINDS: dict[str, type[Direct] | type[Bare] | type[Balancer] | type[HAProxy] | type[Nginx] | type[Dnsdist]] = {
    "direct": Direct,
    "bare": Bare,
    "sockmap-lb": Balancer,
    "haproxy": HAProxy,
    "nginx": Nginx,
    "dnsdist": Dnsdist,
}


def parse(name: str) -> tuple[str, dict[str, str]]:
    """Kind and settings of ``KIND/KEY=VALUE/...``; raises ValueError."""
    kind, *pairs = name.split("/")
    if kind not in KINDS:
        raise ValueError(f"{name!r} is none of {', '.join(KINDS)}")
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in KINDS[kind].defaults or not equals:
            known = ", ".join(KINDS[kind].defaults) or "nothing"
            raise ValueError(f"{pair!r} of {name!r}: one can set {known}")
        settings[key] = value
    return kind, settings


def start(name: str, scene: Scene, stack: contextlib.ExitStack) -> Peer:
    """Starts a peer; the stack ends it.

    Raises:
        ProgramError: it did not start, or is not installed.
    """
    kind, settings = parse(name)
    if KINDS[kind].version() is None:
        raise ProgramError(f"{kind} is not installed")
    return KINDS[kind](scene, settings, stack)


def versions() -> dict[str, str | None]:
    """Of each kind that is installed."""
    return {kind: version for kind, peer in KINDS.items() if (version := peer.version())}


def _version(program: str, option: str) -> str | None:
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
    if path is None:
        return None
    done = subprocess.run((path, option), capture_output=True, text=True, check=True)
    text = (done.stdout or done.stderr).split("\n", 1)[0]
    return next((word.split("/")[-1] for word in text.split() if any(map(str.isdigit, word))), text)


def await_port(place: Place, target: str) -> None:
    """Waits until somebody listens there.

    Raises:
        ProgramError: nobody does.
    """
    host, _, port = target.rpartition(":")
    with place.entered():
        for _ in range(int(START_LIMIT / 0.05)):
            with contextlib.suppress(ConnectionRefusedError), socket.socket() as sock:
                sock.settimeout(0.05)
                sock.connect((host, int(port)))
                return
            threading.Event().wait(0.05)
    raise ProgramError(f"nobody listens at {target}")
