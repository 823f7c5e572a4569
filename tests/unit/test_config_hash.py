"""The keys `hash` and `max_load` of a pool: what they mean, and how their mistakes are reported."""

import pytest

from lb.config import Balance, ConfigErrors, parse
from lb.framing import Endian
from lb.routing import Hash, Key, KeyKind

FIELD = "{field: {offset: 4, width: 8}}"


def pool(lines: str, backends: int = 2) -> str:
    servers = ", ".join(f"{{name: b{number}, address: 10.0.0.1:{number + 1}}}" for number in range(backends))
    return f"""\
listeners: [{{name: rpc, address: 0.0.0.0:7000}}]
pools:
  - name: w
    backends: [{servers}]
{lines}
"""


def refusals(text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "lb.yaml")
    return [str(error).removeprefix("lb.yaml:") for error in caught.value.errors]


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("dns-name", Key(KeyKind.DNS_NAME)),
        ("client-address", Key(KeyKind.CLIENT_ADDRESS)),
        (FIELD, Key(KeyKind.FIELD, 4, 8)),
        ("{string: {offset: 8, width: 4}}", Key(KeyKind.STRING, 8, 4)),
        ("{string: {offset: 8, width: 2, endian: little}}", Key(KeyKind.STRING, 8, 2, Endian.LITTLE)),
    ],
)
def test_what_a_message_is_hashed_by(written: str, key: Key) -> None:
    (found,) = parse(pool(f"    balance: hash\n    hash: {written}"), "").pools

    assert (found.balance, found.hash) == (Balance.HASH, Hash(key, max_load=1.25))


@pytest.mark.parametrize(("written", "most"), [("2", 2.0), ("1.05", 1.05), ("none", None)])
def test_how_much_load_a_backend_takes(written: str, most: float | None) -> None:
    (found,) = parse(pool(f"    balance: hash\n    hash: dns-name\n    max_load: {written}"), "").pools

    assert found.hash == Hash(Key(KeyKind.DNS_NAME), most)


def test_other_pools_have_no_hash() -> None:
    assert parse(pool(""), "").pools[0].hash is None


WANTED = "dns-name, client-address, {field: {offset: 4, width: 8}} or {string: {offset: 4, width: 4}}"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("    balance: hash", "3: pools[0].hash: is missing; add `hash: client-address`"),
        (
            "    hash: dns-name",
            (
                "5: pools[0].hash: has no effect with `balance: least_outstanding`; write `balance: hash`, or"
                " remove it"
            ),
        ),
        (
            "    balance: random\n    max_load: 2",
            "6: pools[0].max_load: has no effect with `balance: random`; write `balance: hash`, or remove it",
        ),
        (
            "    balance: hash\n    hash: url",
            f"6: pools[0].hash: `url` is nothing to hash by; write {WANTED}",
        ),
        (
            "    balance: hash\n    hash: {}",
            f"6: pools[0].hash: names 0 things to hash by; write {WANTED}",
        ),
        (
            f"    balance: hash\n    hash: {FIELD[:-1]}, string: {{offset: 0, width: 1}}}}",
            f"6: pools[0].hash: names 2 things to hash by; write {WANTED}",
        ),
        (
            "    balance: hash\n    hash: {feld: {offset: 0, width: 1}}",
            "6: pools[0].hash.feld: unknown key; did you mean `field`?",
        ),
        (
            "    balance: hash\n    hash: {field: {offset: 4}}",
            "6: pools[0].hash.field.width: is missing; add `width: 4`",
        ),
        (
            "    balance: hash\n    hash: {field: {offset: 4, width: 256}}",
            "6: pools[0].hash.field.width: 256 is outside 1..255 (the bytes of a key); use 255 or less",
        ),
        (
            "    balance: hash\n    hash: {string: {offset: 5000, width: 4}}",
            (
                "6: pools[0].hash.string.offset: 5000 is outside 0..4095 (the parser waits for all bytes in"
                " front of a key); use 4095 or less"
            ),
        ),
        (
            "    balance: hash\n    hash: dns-name\n    max_load: 0.9",
            (
                "7: pools[0].max_load: 0.9 is outside 1..100 (a multiple of the mean, which some have to"
                " reach); use 1 or more"
            ),
        ),
        (
            "    balance: hash\n    hash: dns-name\n    max_load: 25%",
            "7: pools[0].max_load: is `25%`; write a number, such as 1.25, or none",
        ),
    ],
)
def test_mistakes(lines: str, expected: str) -> None:
    assert refusals(pool(lines)) == [expected]


def test_who_may_be_answered_although_it_need_not_be_has_one_backend() -> None:
    """A message for another backend would wait for ever, or take its answer for another's."""
    text = pool("    balance: hash\n    hash: client-address")
    text = text.replace("}]", ", protocol: memcached-binary}]", 1)
    assert parse(text, "").pools
    assert refusals(text.replace("client-address", "dns-name")) == [
        (
            "1: listeners[0].protocol: `memcached-binary` is `responses: any`, and nobody knows when a"
            " message for another backend may follow, but pool w hashes what a message says; use `hash:"
            " client-address`"
        )
    ]


def test_a_key_must_find_its_backend_from_every_client() -> None:
    lines = "    balance: hash\n    hash: dns-name"
    assert parse(pool(lines, 32), "").pools
    assert refusals(pool(lines, 33)) == [
        (
            "4: pools[0].backends: has 33 backends (a client has at most 32 connections, and each key must"
            " find its backend from all clients); remove some, or use another balance"
        )
    ]
