"""docs/METRICS.md has every metric, and every reason that the code can give."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from lb import abi
from tests.metrics_document import PATH, families, reasons

ROOT = Path(__file__).parents[2]
LB = ROOT / "lb"
# Where what is lost, refused or fails gets its reason.
CONTROL = [*sorted((LB / "server").rglob("*.py")), LB / "backends.py", *sorted(LB.glob("health*/**/*.py"))]
CONTROL += sorted(LB.glob("health*.py"))
_WORD = re.compile(r"[a-z]+(_[a-z]+)*")
_NO_FAILURE = {"connected"}  # `reason` of the log line that says why a backend is up
_HINT = f"add a row to {PATH.relative_to(ROOT)}"


def _trees(paths: list[Path]) -> list[ast.Module]:
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths]


def _name(node: ast.expr) -> str:
    """Of what is called, or assigned to."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _words(node: ast.AST | None) -> Iterator[str]:
    """The texts that an expression can be, or be made of."""
    for part in ast.walk(node) if node is not None else ():
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and _WORD.fullmatch(part.value):
            yield part.value


def _takes_a_reason(trees: list[ast.Module]) -> dict[str, int]:
    """Functions with a parameter `reason`, and which one it is, without `self`."""
    found = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [argument.arg for argument in node.args.args if argument.arg not in {"self", "cls"}]
                if "reason" in names:
                    found[node.name] = names.index("reason")
    return found


def _reasons_in(trees: list[ast.Module]) -> set[str]:
    takers = _takes_a_reason(trees)
    found: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=func, args=arguments) if (place := takers.get(_name(func))) is not None:
                    found.update(*(_words(argument) for argument in arguments[place : place + 1]))
                    found.update(
                        *(_words(keyword.value) for keyword in node.keywords if keyword.arg == "reason")
                    )
                case ast.Call(func=ast.Attribute(attr="fromkeys"), args=[keys, *_]):
                    found.update(_words(keys))
                case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=value):
                    if _name(target).lower().strip("_") in {"reason", "reasons", "lost", "malformed"}:
                        found.update(_words(value))
    return found


def test_the_search_finds_reasons() -> None:
    """If it does not, the next test says nothing."""
    found = _reasons_in(_trees(CONTROL))

    assert {
        "backend_closed",
        "bug",
        "max_clients",
        "no_slot",
        "timeout",
        "oversize",
        "drain_timeout",
    } <= found


def test_every_reason_of_the_control_plane_is_documented() -> None:
    known = set().union(*reasons().values())

    assert sorted(_reasons_in(_trees(CONTROL)) - known - _NO_FAILURE) == [], _HINT


def test_every_reason_of_the_programs_is_documented() -> None:
    known = reasons()
    for prefix, metric in {"DROPPED_": "dropped_messages_total", "PAUSES_": "pauses_total"}.items():
        given = {
            name.removeprefix(prefix).lower() for name in abi.Counter.__members__ if name.startswith(prefix)
        }
        assert sorted(given - known[metric]) == [], f"{_HINT}, {metric}"


def test_every_metric_is_documented_and_no_other() -> None:
    made: dict[str, set[str]] = {"counter": set(), "gauge": set(), "histogram": set()}
    kinds = {
        "_counter": "counter",
        "_gauge": "gauge",
        "CounterMetricFamily": "counter",
        "GaugeMetricFamily": "gauge",
        "HistogramMetricFamily": "histogram",
    }
    for tree in _trees([*sorted(LB.glob("metrics*.py")), *sorted(LB.glob("metrics/*.py"))]):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (kind := kinds.get(_name(node.func))) and node.args:
                for word in _words(node.args[0]):
                    made[kind].add(f"{word}_total" if kind == "counter" else word)
    documented = {kind: {f.name for f in families() if f.kind == kind} for kind in made}

    assert made == documented, _HINT
