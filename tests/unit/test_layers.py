"""Imports go down only: docs/ARCHITECTURE.md has the table."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the bottom. A module may import its own layer and those before it; the more exact name counts.
LAYERS = (
    (
        "lb.config",
        "lb.framing",
        "lb.session",
        "lb.slots",
        "lb.ranges",
        "lb.balance",
        "lb.maglev",
        "lb.proxy",
        "lb.ranges",
        "lb.routing",
        "lb.rules",
    ),
    ("lb.libbpf",),
    ("lb.abi",),
    ("lb.dataplane",),
    ("lb.events",),
    ("lb.backends", "lb.health", "lb.server"),
    ("lb.status",),
    ("lb.metrics", "lb.privileges"),
    ("lb.admin",),
    ("lb.app", "lb.logs", "lb.notify", "lb.demo"),
    ("lb.cli",),
    ("lb.__main__",),
)
PURE = LAYERS[0]
FORBIDDEN = {
    "asyncio": (*PURE, "lb.libbpf", "lb.abi", "lb.dataplane"),
    "uvloop": tuple(name for layer in LAYERS[:9] for name in layer),
    "time": PURE,
    "lb.abi": ("lb.libbpf",),
}
MODULES = sorted((ROOT / "lb").rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "lb":
                found.update(f"lb.{alias.name}" for alias in node.names)
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer_of(module: str) -> int | None:
    for number, names in enumerate(LAYERS):
        if any(within(module, name) for name in names):
            return number
    return None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    module = name_of(path)
    if module == "lb":
        assert not imports(path)
        return
    own = layer_of(module)
    assert own is not None, f"{module} belongs to no layer"
    for imported in imports(path):
        theirs = layer_of(imported)
        assert theirs is None or theirs <= own, f"{module} imports {imported}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_layers_know_nothing_of_what_is_not_theirs(path: Path) -> None:
    module = name_of(path)
    for forbidden, packages in FORBIDDEN.items():
        if any(within(module, package) for package in packages):
            assert not any(within(imported, forbidden) for imported in imports(path)), (
                f"{module}: {forbidden}"
            )
