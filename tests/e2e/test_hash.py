"""Hashed pools: who asks for the same thing is answered by the same backend."""

from collections import defaultdict

from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually_equal

NUMBERS = range(40)
BY_BODY = {"field": {"offset": 8, "width": 4}}
ORDERED = {
    "length": {"offset": 0, "width": 4, "adjust": 4},
    "id": {"offset": 4, "width": 4},
    "ordering": "fifo",
}


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def ask(client: Client, number: int) -> str:
    """Who answers."""
    (answer,) = client.ask(message(number, key(number)))
    return read_answer(answer).backend


def test_a_key_has_one_backend_whoever_asks(lab: Lab) -> None:
    """Each of 40 keys, from three clients, one after the other, and after a restart."""
    backends = [lab.backend(name) for name in "abc"]
    found: dict[int, set[str]] = defaultdict(set)
    for _ in range(2):
        balancer = lab.serve(backends, balance="hash", hash=BY_BODY)
        for _ in range(3):
            with balancer.connect() as client:
                for number in NUMBERS:
                    found[number].add(ask(client, number))
        assert balancer.stop().code == 0
    assert all(len(names) == 1 for names in found.values())
    assert set.union(*found.values()) == set("abc")


def test_a_key_has_one_backend_where_clients_share_their_connections(lab: Lab) -> None:
    """Also for a client that half-closed before it could be mapped."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = lab.serve(
        backends, balance="hash", hash=BY_BODY, connections="shared", connections_per_backend=2
    )
    found: dict[int, set[str]] = defaultdict(set)
    for _ in range(3):
        with balancer.connect() as client:
            answers = client.ask(*(message(number, key(number)) for number in NUMBERS))
            for answer in map(read_answer, answers):
                found[answer.number].add(answer.backend)
    assert all(len(names) == 1 for names in found.values())
    assert set.union(*found.values()) == set("abc")
    mine = [number for number in NUMBERS if found[number] == {"b"}]
    early = balancer.connect_while_it_stands_still(*(message(number, key(number)) for number in mine))
    assert {read_answer(answer).backend for answer in early.answers_to_the_end()} == {"b"}


def test_what_a_paused_client_sent_before_it_left_goes_by_the_table_too(lab: Lab) -> None:
    """With fifo: one message after the other, as user space carries them."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = lab.serve(
        backends, balance="hash", hash=BY_BODY, protocol="ordered", protocols={"ordered": ORDERED}
    )
    client = balancer.connect()
    ask(client, 0)  # it is mapped
    client.send(*(message(number, key(number)) for number in NUMBERS))
    client.half_close()
    answers = list(map(read_answer, client.answers_to_the_end()))
    assert [answer.number for answer in answers] == list(NUMBERS)
    assert {answer.backend for answer in answers} == set("abc")


def test_without_one_backend_the_keys_of_the_others_stay(lab: Lab) -> None:
    backends = [lab.backend(name) for name in "abc"]
    checks = {"interval": "100ms", "timeout": "100ms", "rise": 2, "fall": 2}
    balancer = lab.serve(backends, balance="hash", hash=BY_BODY, health_check=checks)
    first = balancer.connect()
    before = {number: ask(first, number) for number in NUMBERS}
    backends[1].close()
    eventually_equal(lambda: balancer.metrics().by("backend", "backend_up"), {"a": 1, "b": 0, "c": 1})
    second = balancer.connect()
    after = {number: ask(first, number) for number in NUMBERS}
    assert after == {number: ask(second, number) for number in NUMBERS}
    assert {number: name for number, name in after.items() if before[number] != "b"} == {
        number: name for number, name in before.items() if name != "b"
    }
    assert {after[number] for number in NUMBERS if before[number] == "b"} == {"a", "c"}


def test_a_client_that_half_closed_early_has_its_keys_backend(lab: Lab) -> None:
    backends = [lab.backend(name) for name in "abc"]
    balancer = lab.serve(backends, balance="hash", hash=BY_BODY)
    client = balancer.connect()
    owners = {number: ask(client, number) for number in NUMBERS}
    mine = [number for number, name in owners.items() if name == "b"]
    early = balancer.connect_while_it_stands_still(*(message(number, key(number)) for number in mine))
    assert {read_answer(answer).backend for answer in early.answers_to_the_end()} == {"b"}
    mixed = balancer.connect_while_it_stands_still(*(message(number, key(number)) for number in NUMBERS))
    assert mixed.is_reset()
    metrics = balancer.metrics()
    assert metrics.value("refused_connections_total", reason="half_closed") == 1
    assert metrics.value("dropped_messages_total", reason="half_closed") == len(NUMBERS)


def test_answers_keep_their_order_although_keys_change(lab: Lab) -> None:
    """With fifo a message for another backend waits until nothing is outstanding."""
    backends = [lab.backend(name, delay=0.001) for name in "abc"]
    balancer = lab.serve(
        backends,
        balance="hash",
        hash=BY_BODY,
        protocol="ordered",
        protocols={"ordered": ORDERED},
    )
    client = balancer.connect()
    answers = list(map(read_answer, client.ask(*(message(number, key(number)) for number in NUMBERS))))
    assert [answer.number for answer in answers] == list(NUMBERS)
    assert {answer.backend for answer in answers} == set("abc")
    assert balancer.metrics().value("pauses_total", reason="order") > 0
