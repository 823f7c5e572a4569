"""What a test works with: namespaces and what runs inside, all of it gone when the test ends."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, Tree, configuration, read_endpoint
from tests.e2e.namespaces import Endpoint, Namespace
from tests.e2e.processes import SOCKMAP_LB, Done, Process, run


class Lab:
    """Starts things in a namespace of its own, or in another one, and ends them in reverse order."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._balancers = 0
        self.here = self.namespace()

    def namespace(self, role: str = "lab") -> Namespace:
        """One more network."""
        namespace = Namespace(role)
        self._stack.callback(namespace.close)
        return namespace

    def start(self, *arguments: str, where: Namespace | None = None) -> Process:
        """Run a program in the background."""
        process = Process(arguments, where or self.here)
        self._stack.callback(process.close)
        return process

    def run(self, *arguments: str, where: Namespace | None = None) -> Done:
        """Run a program to its end."""
        return run(arguments, where or self.here)

    def backend(self, name: str = "a", *, where: Namespace | None = None, **how: Any) -> Backend:
        """A scripted backend, see :class:`Backend`."""
        backend = Backend(where or self.here, name, **how)
        self._stack.callback(backend.close)
        return backend

    def demo_backend(self, name: str = "a", listen: str = "127.0.0.1:0") -> tuple[Process, Endpoint]:
        """A backend in a process of its own."""
        process = self.start(*SOCKMAP_LB, "demo-backend", "--name", name, "--listen", listen)
        return process, read_endpoint(process.stdout.wait_for(r"^\S+:\d+$")[0])

    def balancer(
        self, tree: Tree, *, where: Namespace | None = None, launch: Callable[[Path], Process] | None = None
    ) -> Balancer:
        """A balancer that listens; its backends may be down."""
        self._balancers += 1
        folder = self.folder / f"balancer{self._balancers}"
        folder.mkdir()
        balancer = Balancer(where or self.here, tree, folder, launch)
        self._stack.callback(balancer.close)
        return balancer

    def serve(self, backends: Sequence[Backend | Endpoint], **settings: Any) -> Balancer:
        """A balancer with all of these backends up."""
        return self.balancer(self.tree(backends, **settings)).wait_ready()

    @staticmethod
    def tree(backends: Sequence[Backend | Endpoint], **settings: Any) -> Tree:
        """See :func:`configuration`."""
        endpoints = [entry.endpoint if isinstance(entry, Backend) else entry for entry in backends]
        return configuration(endpoints, **settings)
