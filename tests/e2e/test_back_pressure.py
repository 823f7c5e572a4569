"""What waits, and what becomes of it: backends that are full, gone, or come back."""

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from lb.framing import PRESETS, Message
from tests.e2e.backend import Backend
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually, eventually_equal

DNS = PRESETS["dns"]


def query(number: int) -> bytes:
    asked = dns.message.make_query(f"n{number}.example.test.", "A", id=number, use_edns=True)
    wire = asked.to_wire()
    return len(wire).to_bytes(2, "big") + wire


def answer(_backend: Backend, asked: Message) -> bytes:
    """A positive answer to a query."""
    reply = dns.message.make_response(dns.message.from_wire(asked.data[2:]))
    reply.answer.append(dns.rrset.from_text(reply.question[0].name, 60, "IN", "A", "10.0.0.1"))
    wire = reply.to_wire()
    return len(wire).to_bytes(2, "big") + wire


def read(data: bytes) -> tuple[int, str, dns.rcode.Rcode]:
    """Id, name and outcome; that it answers the query with this id dnspython itself says."""
    reply = dns.message.from_wire(data[2:])
    assert dns.message.from_wire(query(reply.id)[2:]).is_response(reply)
    return reply.id, str(reply.question[0].name), reply.rcode()


class TestErrorReplies:
    def test_queries_that_a_dead_backend_owes_are_answered_by_servfail(self, lab: Lab) -> None:
        dying = lab.backend("a", framing=DNS, respond=answer, holding=True)
        well = lab.backend("b", framing=DNS, respond=answer)
        balancer = lab.serve([dying, well], protocol="dns", balance="round_robin", batch=1)
        client = balancer.connect()
        client.send(*(query(number) for number in range(1, 41)))
        eventually(lambda: len(dying.received) + len(well.received) == 40)
        owed = {asked.id for asked in dying.received}
        assert owed

        dying.reset()

        got = [read(data) for data in client.answers(40)]
        assert {number for number, _, outcome in got if outcome == dns.rcode.SERVFAIL} == owed
        assert {number for number, _, outcome in got if outcome == dns.rcode.NOERROR} == (
            set(range(1, 41)) - owed
        )
        assert all(name == f"n{number}.example.test." for number, name, _ in got)
        dying.held = None
        assert [read(data)[2] for data in client.ask(query(50))] == [dns.rcode.NOERROR]
        dropped = balancer.metrics().seen("reason", "dropped_messages_total")
        assert dropped == {"backend_reset": len(owed)}
        # Written off once no program can count there any more.
        eventually_equal(lambda: balancer.metrics().value("backend_outstanding_messages"), 0)

    def test_queries_that_find_no_backend_are_answered_by_servfail(self, lab: Lab) -> None:
        backend = lab.backend("a", framing=DNS, respond=answer)
        balancer = lab.serve([backend], protocol="dns", timeouts={"queue": "300ms"})
        client = balancer.connect()
        assert [read(data)[2] for data in client.ask(query(1))] == [dns.rcode.NOERROR]
        backend.close()
        eventually_equal(lambda: balancer.metrics().value("backend_up"), 0)

        got = [read(data) for data in client.ask(query(2), query(3))]

        assert [(number, outcome) for number, _, outcome in got] == [
            (2, dns.rcode.SERVFAIL),
            (3, dns.rcode.SERVFAIL),
        ]
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {"no_backend": 2}


class TestWaiting:
    def test_a_backend_that_comes_back_in_time(self, lab: Lab) -> None:
        """The client notices a pause, and nothing else."""
        backend = lab.backend("a")
        balancer = lab.serve([backend], timeouts={"queue": "20s"})
        client = balancer.connect()
        assert read_answer(client.ask(message(1, b"before"))[0]).asked == b"before"
        endpoint = backend.endpoint
        backend.close()
        eventually_equal(lambda: balancer.metrics().value("backend_up"), 0)
        client.send(message(2, b"meanwhile"))
        eventually(lambda: balancer.metrics().value("pauses_total", reason="no_upstream") == 1)

        lab.backend("b", endpoint=endpoint)

        assert [read_answer(data).asked for data in client.answers(1)] == [b"meanwhile"]
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {}

    def test_a_backend_that_does_not_come_back(self, lab: Lab) -> None:
        backend = lab.backend("a")
        balancer = lab.serve([backend], timeouts={"queue": "300ms"})
        client = balancer.connect()
        client.ask(message(1))
        backend.close()
        eventually_equal(lambda: balancer.metrics().value("backend_up"), 0)

        client.send(message(2), message(3))

        assert client.is_reset()
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {"no_backend": 2}

    def test_one_that_closed_its_side_while_its_messages_waited(self, lab: Lab) -> None:
        """The kernel takes it back no more: user space carries what waited."""
        backend = lab.backend("a")
        balancer = lab.serve([backend], timeouts={"queue": "20s"})
        client = balancer.connect()
        client.ask(message(1))
        endpoint = backend.endpoint
        backend.close()
        eventually_equal(lambda: balancer.metrics().value("backend_up"), 0)
        client.send(*(message(number) for number in range(2, 102)))
        client.half_close()
        eventually(lambda: balancer.metrics().value("pauses_total", reason="no_upstream") == 1)

        lab.backend("b", endpoint=endpoint)

        assert [read_answer(data).number for data in client.answers_to_the_end()] == list(range(2, 102))
        assert balancer.metrics().value("datapath_messages_total", path="userspace") == 100
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {}


class TestMaxOutstanding:
    @pytest.mark.parametrize("clients", [1, 3])
    def test_what_is_over_waits(self, lab: Lab, clients: int) -> None:
        backend = lab.backend("a", holding=True)
        tree = lab.tree([backend], timeouts={"queue": "20s"})
        tree["pools"][0]["backends"][0]["max_outstanding"] = 6
        balancer = lab.balancer(tree).wait_ready()
        askers = [balancer.connect() for _ in range(clients)]
        for asker in askers:
            asker.send(*(message(number) for number in range(12)))
            eventually(lambda: len(backend.received) == 6)
        assert balancer.metrics().value("backend_outstanding_messages") == 6

        backend.release()

        for asker in askers:
            assert len(asker.answers(12)) == 12
        assert len(backend.received) == 12 * clients
        assert balancer.metrics().value("pauses_total", reason="limit") >= 1

    def test_what_waits_too_long_is_refused(self, lab: Lab) -> None:
        backend = lab.backend("a", holding=True)
        tree = lab.tree([backend], timeouts={"queue": "300ms"})
        tree["pools"][0]["backends"][0]["max_outstanding"] = 2
        balancer = lab.balancer(tree).wait_ready()
        client = balancer.connect()

        client.send(*(message(number) for number in range(5)))

        assert client.is_reset()
        assert len(backend.received) == 2
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {"max_outstanding": 5}
