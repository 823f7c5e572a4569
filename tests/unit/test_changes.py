"""What differs between two configurations: small cases, and that doing it leads to the new one."""

import random
from dataclasses import replace
from typing import Any

import pytest
import yaml

from lb.config import Config, parse
from lb.config.changes import apply, difference
from lb.config.lines import line_of

Tree = dict[str, Any]


def tree(**changes: Any) -> Tree:
    return {
        "listeners": [{"name": "rpc", "address": "127.0.0.1:7000", "pool": "workers"}],
        "pools": [
            {
                "name": "workers",
                "backends": [
                    {"name": "a", "address": "10.0.0.1:9000"},
                    {"name": "b", "address": "10.0.0.2:9000", "weight": 2},
                ],
            }
        ],
    } | changes


def config(told: Tree) -> Config:
    return parse(yaml.safe_dump(told), "test")


def pool(**changes: Any) -> list[Tree]:
    return [tree()["pools"][0] | changes]


def listener(**changes: Any) -> list[Tree]:
    return [tree()["listeners"][0] | changes]


def backends(*added: Tree, without: str = "", **changes: Any) -> list[Tree]:
    kept = [each for each in tree()["pools"][0]["backends"] if each["name"] != without]
    return pool(backends=[*(each | (changes if each["name"] == "a" else {}) for each in kept), *added])


SHARED = pool(connections="shared")


@pytest.mark.parametrize(
    ("old", "new", "summary"),
    [
        ({}, {}, {}),
        ({}, {"pools": pool(timeouts={"idle": "1m"})}, {"pools_changed": ["workers"]}),
        ({}, {"pools": pool(batch=1, panic_threshold=10, slow_start="1s")}, {"pools_changed": ["workers"]}),
        ({}, {"pools": pool(health_check={"rise": 1})}, {"pools_changed": ["workers"]}),
        (
            {},
            {"pools": backends(weight=7, max_outstanding=3)},
            {"pools_changed": ["workers"], "backends_changed": ["workers/a"]},
        ),
        (
            {},
            {"pools": backends(address="10.0.0.9:1")},
            {"pools_changed": ["workers"], "backends_replaced": ["workers/a"]},
        ),
        (
            {},
            {"pools": backends({"name": "c", "address": "10.0.0.3:9000"}, without="b")},
            {
                "pools_changed": ["workers"],
                "backends_added": ["workers/c"],
                "backends_removed": ["workers/b"],
            },
        ),
        (
            {},
            {"pools": pool(balance="random")},
            {"pools_replaced": ["workers"], "listeners_replaced": ["rpc"]},
        ),
        ({}, {"pools": SHARED}, {"pools_replaced": ["workers"], "listeners_replaced": ["rpc"]}),
        (
            {"pools": SHARED},
            {"pools": pool(connections="shared", max_in_flight=8)},
            {"pools_replaced": ["workers"], "listeners_replaced": ["rpc"]},
        ),
        (
            {"pools": SHARED},
            {"pools": SHARED, "listeners": listener(protocol="dns")},
            {"pools_replaced": ["workers"], "listeners_replaced": ["rpc"]},
        ),
        ({}, {"listeners": listener(protocol="dns")}, {"listeners_replaced": ["rpc"]}),
        ({}, {"listeners": listener(address="127.0.0.1:7001")}, {"listeners_replaced": ["rpc"]}),
        ({}, {"listeners": listener(limits={"max_clients": 3})}, {"listeners_changed": ["rpc"]}),
        (
            {},
            {"listeners": listener(name="other")},
            {"listeners_added": ["other"], "listeners_removed": ["rpc"]},
        ),
    ],
)
def test_what_has_to_be_done(old: Tree, new: Tree, summary: dict[str, list[str]]) -> None:
    before, after = config(tree(**old)), config(tree(**new))
    found = difference(before, after)
    assert found.summary() == summary
    assert bool(found) == bool(summary)
    assert not found.refusals
    assert apply(before, found, after) == after


@pytest.mark.parametrize(
    ("new", "path"),
    [
        ({"admin": {"address": "127.0.0.1:9"}}, "admin"),
        ({"runtime": {"user": "somebody"}}, "runtime.user"),
        ({"runtime": {"max_connections": 100}}, "runtime.max_connections"),
    ],
)
def test_what_only_a_restart_can_change(new: Tree, path: str) -> None:
    (refusal,) = difference(config(tree()), config(tree(**new))).refusals
    assert refusal.path == path
    assert "restart" in refusal.remedy


def test_the_order_of_a_file_is_no_difference() -> None:
    before = config(tree(pools=[*pool(), {**pool()[0], "name": "more"}]))
    after = replace(before, pools=tuple(reversed(before.pools)))
    assert not difference(before, after)
    assert apply(before, difference(before, after), after) == after


def random_config(source: random.Random) -> Config:
    """A valid one, of names that others have too."""
    names = source.sample(["p", "q", "r", "s"], source.randint(1, 4))
    pools = []
    for name in names:
        members = source.sample("abcdef", source.randint(1, 4))
        shared = source.random() < 0.4
        pools.append(
            {
                "name": name,
                "balance": source.choice(["round_robin", "random"]),
                "connections": "shared" if shared else "per_client",
                "batch": source.choice([1, 64]),
                "backends": [
                    {
                        "name": member,
                        "address": f"10.0.0.{source.randint(1, 3)}:9000",
                        "weight": source.randint(1, 2),
                    }
                    for member in members
                ],
            }
        )
    listeners = [
        {
            "name": name,
            "address": f"127.0.0.1:{7000 + number}",
            "pool": source.choice(names),
            "protocol": source.choice(["length-prefixed", "length-prefixed", "dns"]),
            "limits": {"max_clients": source.randint(1, 2)},
        }
        for number, name in enumerate(source.sample(["k", "l", "m"], source.randint(1, 3)))
    ]
    speaks: dict[Any, Any] = {}
    for each in listeners:  # on shared connections all speak the same
        each["protocol"] = speaks.setdefault(each["pool"], each["protocol"])
    return config({"listeners": listeners, "pools": pools})


@pytest.mark.parametrize("seed", range(200))
def test_doing_it_leads_to_the_new_configuration(seed: int) -> None:
    source = random.Random(seed)
    before, after = random_config(source), random_config(source)
    found = difference(before, after)
    assert apply(before, found, after) == after
    assert not difference(after, after)
    # Who is served by something new is new.
    replaced = {pool.name for _, pool in found.pools.replaced}
    kept = {listener.name for _, listener in found.listeners.changed}
    kept |= {a.name for a in after.listeners if a in before.listeners}
    kept -= {listener.name for _, listener in found.listeners.replaced}
    assert not [each for each in after.listeners if each.name in kept and each.pool in replaced]


TEXT = """\
runtime:
  user: nobody
pools:
  - name: a
    backends: [{name: x, address: "1.2.3.4:5"}]
  - name: b
    accept: 1.2.3.4:5
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("runtime.user", 2),
        ("runtime.watch", 1),
        ("pools[1].accept", 7),
        ("pools[0].backends[0].address", 5),
        ("pools[7]", 3),
        ("admin", 1),
        ("file", 1),
    ],
)
def test_the_line_of_a_path(path: str, line: int) -> None:
    assert line_of(TEXT, path) == line
