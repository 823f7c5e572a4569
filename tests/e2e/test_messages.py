"""Many clients at once: each answer reaches its asker, whole, once."""

import random
from collections import Counter

from tests.e2e.balancer import Balancer
from tests.e2e.lab import Lab
from tests.e2e.load import Pipeline, pipelines
from tests.e2e.messages import labelled, message, read_answer, read_label
from tests.e2e.polling import eventually_equal

CLIENTS = 200
EACH = 25


def size(source: random.Random) -> int:
    """Most are small, some are longer than any segment, a few than 64 KiB."""
    return source.choice(
        [source.randrange(16, 200)] * 30
        + [source.randrange(16, 20_000)] * 8
        + [source.randrange(1 << 16, 200_000)]
    )


def exchange(balancer: Balancer, seed: int, clients: int, each: int) -> Counter[str]:
    """Answers by backend, after each was checked."""

    def make(client: int) -> Pipeline:
        source = random.Random(seed * 1000 + client)
        requests = [message(i, labelled(client, i, size(source), source)) for i in range(each)]
        return Pipeline(requests, depth=source.choice([1, 4, each]), cuts=source)

    answerers: Counter[str] = Counter()
    everything = pipelines(lambda: balancer.connect().sock, clients, make)
    for client, answers in enumerate(everything):
        sequences = []
        for data in answers:
            answer = read_answer(data)
            whose, sequence = read_label(answer.asked)
            assert whose == client
            assert sequence == answer.number
            sequences.append(sequence)
            answerers[answer.backend] += 1
        assert sorted(sequences) == list(range(each))
    return answerers


def test_many_clients(lab: Lab) -> None:
    backends = [lab.demo_backend(name)[1] for name in "abc"]
    balancer = lab.serve(backends)
    answerers = exchange(balancer, 1, CLIENTS, EACH)
    assert answerers.total() == CLIENTS * EACH
    assert set(answerers) == set("abc")
    metrics = balancer.metrics()
    assert metrics.by("backend", "messages_total") == answerers
    assert metrics.by("backend", "responses_total") == answerers
    assert metrics.value("datapath_messages_total", path="userspace") == 0
    assert metrics.value("dropped_messages_total") == 0
    assert metrics.value("protocol_errors_total") == 0
    eventually_equal(lambda: balancer.status()["sockets"], 0)
    assert balancer.metrics().value("buffered_bytes") == 0


def test_one_message_each_way_at_a_time_byte_by_byte(lab: Lab) -> None:
    """The header in eight segments, and then the body in as many."""
    balancer = lab.serve([lab.backend("a")])
    client = balancer.connect()
    for number in range(20):
        for byte in message(number, b"12345678"):
            client.send(bytes([byte]))
        assert read_answer(client.answers(1)[0]) == (number, "a", b"12345678")


def test_the_longest_message(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a")])
    client = balancer.connect()
    source = random.Random(3)
    # The answer has two bytes more, and the limit holds for it too.
    body = labelled(0, 0, (1 << 20) - 8 - 2, source)
    for number in range(8):
        answer = read_answer(client.ask(message(number, body))[0])
        assert answer == (number, "a", body)
