"""The `ejection` of a pool and the `response_error` of a protocol: what they mean, and their mistakes."""

import pytest

from lb.config import Ejection, parse
from lb.framing import Field, Match
from tests.unit.test_config import refusal

FILE = """\
protocols:
  plain: {{length: {{offset: 0, width: 2, adjust: 2}}}}
  marked:
    length: {{offset: 0, width: 2}}
    response_error: {{offset: 3, mask: 0x0f, value: 5}}
listeners:
  - {{name: rpc, address: 127.0.0.1:7000, protocol: {protocol}, pool: workers}}
pools:
  - name: workers
    backends: [{{name: a, address: 127.0.0.1:9000}}]
    ejection: {ejection}
"""


def file(ejection: str, protocol: str = "plain") -> str:
    return FILE.format(ejection=ejection, protocol=protocol)


def ejection_of(text: str, protocol: str = "plain") -> Ejection | None:
    return parse(file(text, protocol), "").pools[0].ejection


def test_what_is_not_given() -> None:
    assert ejection_of("{}") == Ejection(
        consecutive_failures=5,
        base_ejection=30.0,
        max_ejection=300.0,
        max_ejection_percent=50,
        error_responses=False,
    )
    without = file("{}").replace("    ejection: {}\n", "")
    assert parse(without, "").pools[0].ejection is None


def test_what_is_given() -> None:
    text = "{consecutive_failures: 2, base_ejection: 1s, max_ejection: 2s, max_ejection_percent: 100%}"
    assert ejection_of(text) == Ejection(2, 1.0, 2.0, 100)
    long = ejection_of("{base_ejection: 1h}")
    assert long is not None
    assert long.max_ejection == 3600.0


@pytest.mark.parametrize(
    ("text", "protocol", "counts"),
    [
        ("{}", "plain", False),
        ("{}", "marked", True),
        ("{error_responses: false}", "marked", False),
        ("{error_responses: true}", "marked", True),
        ("{}", "dns", False),
        ("{error_responses: true}", "dns", True),
    ],
)
def test_error_responses(text: str, protocol: str, counts: bool) -> None:
    ejection = ejection_of(text, protocol)
    assert ejection is not None
    assert ejection.error_responses is counts


def test_what_marks_them() -> None:
    framing = parse(file("{}", "marked"), "").listeners[0].framing
    assert framing.response_error == Match(Field(3, 1), 0x0F, 5)
    assert framing.window == 4


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{consecutive_failures: 0}", "consecutive_failures: 0 is outside 1..1000"),
        ("{base_ejection: 50ms}", "base_ejection: 50ms is outside 100ms..1h"),
        ("{base_ejection: 1m, max_ejection: 59s}", "max_ejection: 59s is outside 1m..24h"),
        ("{max_ejection_percent: 9}", "max_ejection_percent: 9% is outside 10%..100%"),
        ("{max_ejection_percent: 101}", "max_ejection_percent: 101% is outside 10%..100%"),
        (
            "{error_responses: true}",
            "error_responses: nobody knows the error responses of plain; declare `response_error`",
        ),
        ("{percent: 3}", "percent: unknown key"),
    ],
)
def test_mistakes(text: str, wrong: str) -> None:
    assert refusal(file(text)).startswith(f"11: pools[0].ejection.{wrong}")
