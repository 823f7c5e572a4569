"""What is learned from answers about a name, and how the resolver is asked."""

import asyncio
import socket
import threading
from ipaddress import ip_address

import pytest

from lb.config import Family
from lb.server import lookup
from lb.server.lookup import Answer, Lookups, Result, look_up
from lb.server.names import Known

V4, V6 = socket.AF_INET, socket.AF_INET6
NO_NAME, NO_ADDRESS = Answer(Result.NO_NAME), Answer(Result.NO_ADDRESS)
UNAVAILABLE, TIMEOUT = Answer(Result.UNAVAILABLE), Answer(Result.TIMEOUT)


def found(*hosts: str) -> Answer:
    return Answer(Result.FOUND, tuple(ip_address(host) for host in hosts))


def hosts(known: Known) -> list[str]:
    return [str(host) for host in known.hosts]


class TestKnown:
    def test_an_address_that_is_not_told_any_more_is_gone(self) -> None:
        known = Known(Family.IPV4)
        assert known.learn({V4: found("10.0.0.1", "10.0.0.2")}) is Result.FOUND
        assert known.learn({V4: found("10.0.0.2", "10.0.0.3")}) is Result.FOUND
        assert hosts(known) == ["10.0.0.2", "10.0.0.3"]

    @pytest.mark.parametrize("answer", [NO_NAME, NO_ADDRESS, UNAVAILABLE, TIMEOUT, Answer(Result.FAILED)])
    def test_an_answer_without_address_changes_nothing(self, answer: Answer) -> None:
        known = Known(Family.IPV4)
        assert known.learn({V4: answer}) is answer.result
        assert hosts(known) == []
        known.learn({V4: found("10.0.0.1")})
        assert known.learn({V4: answer}) is answer.result
        assert hosts(known) == ["10.0.0.1"]

    def test_both_families_side_by_side(self) -> None:
        known = Known(Family.BOTH)
        assert known.learn({V4: found("10.0.0.1"), V6: found("fd00::1")}) is Result.FOUND
        assert hosts(known) == ["10.0.0.1", "fd00::1"]
        assert known.learn({V4: UNAVAILABLE, V6: found("fd00::2")}) is Result.UNAVAILABLE
        assert hosts(known) == ["10.0.0.1", "fd00::2"], "nobody has said that the first one is gone"
        assert known.learn({V4: NO_ADDRESS, V6: found("fd00::2")}) is Result.FOUND
        assert hosts(known) == ["fd00::2"]
        assert known.learn({V4: NO_NAME, V6: NO_NAME}) is Result.NO_NAME
        assert hosts(known) == ["fd00::2"]

    def test_a_server_with_both_is_one(self) -> None:
        known = Known(Family.AUTO)
        known.learn({V4: NO_ADDRESS, V6: found("fd00::1")})
        assert hosts(known) == ["fd00::1"]
        known.learn({V4: found("10.0.0.1")})
        assert hosts(known) == ["10.0.0.1"]
        known.learn({V4: UNAVAILABLE})
        assert hosts(known) == ["10.0.0.1"]
        known.learn({V4: NO_ADDRESS, V6: found("fd00::2")})
        assert hosts(known) == ["fd00::2"]

    @pytest.mark.parametrize(
        ("family", "answers", "asked"),
        [
            (Family.AUTO, {V4: found("10.0.0.1")}, [V4]),
            (Family.AUTO, {V4: NO_ADDRESS, V6: found("fd00::1")}, [V4, V6]),
            (Family.AUTO, {V4: NO_NAME, V6: NO_NAME}, [V4, V6]),
            (Family.AUTO, {V4: UNAVAILABLE}, [V4]),
            (Family.BOTH, {V4: UNAVAILABLE, V6: found("fd00::1")}, [V4, V6]),
            (Family.IPV4, {V4: NO_ADDRESS}, [V4]),
            (Family.IPV6, {V6: found("fd00::1")}, [V6]),
        ],
    )
    def test_who_is_asked(
        self,
        monkeypatch: pytest.MonkeyPatch,
        family: Family,
        answers: dict[socket.AddressFamily, Answer],
        asked: list[socket.AddressFamily],
    ) -> None:
        heard: list[socket.AddressFamily] = []

        def answer(host: str, wanted: socket.AddressFamily) -> Answer:
            heard.append(wanted)
            return answers[wanted]

        monkeypatch.setattr(lookup, "look_up", answer)

        async def look() -> None:
            await Known(family).look(Lookups(asyncio.get_running_loop()), "a.test", 5.0)

        asyncio.run(look())
        assert heard == asked


class TestLookups:
    def test_a_question_is_asked_once_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who gives up leaves the thread behind, and the next one waits for it."""
        asked: list[str] = []
        goes_on = threading.Event()

        def slow(host: str, _: socket.AddressFamily) -> Answer:
            asked.append(host)
            assert goes_on.wait(10)
            return found("10.0.0.1")

        monkeypatch.setattr(lookup, "look_up", slow)

        async def look() -> None:
            lookups = Lookups(asyncio.get_running_loop())
            assert await lookups.ask("a.test", V4, 0.01) == TIMEOUT
            first = asyncio.create_task(lookups.ask("a.test", V4, 10))
            second = asyncio.create_task(lookups.ask("a.test", V4, 10))
            other = asyncio.create_task(lookups.ask("a.test", V6, 10))
            await asyncio.sleep(0)
            goes_on.set()
            assert await first == await second == await other == found("10.0.0.1")
            assert len(asked) == 2, "one for each family"
            assert await lookups.ask("a.test", V4, 10) == found("10.0.0.1")
            assert len(asked) == 3

        asyncio.run(look())

    def test_an_answer_that_comes_after_the_end_hurts_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        goes_on, threads = threading.Event(), list[threading.Thread]()

        def slow(*_: object) -> Answer:
            threads.append(threading.current_thread())
            assert goes_on.wait(10)
            return found("10.0.0.1")

        monkeypatch.setattr(lookup, "look_up", slow)

        async def look() -> None:
            assert await Lookups(asyncio.get_running_loop()).ask("a.test", V4, 0.01) == TIMEOUT

        asyncio.run(look())
        goes_on.set()
        (thread,) = threads
        assert thread.daemon
        thread.join(10)  # an exception in a thread fails the test
        assert not thread.is_alive()

    def test_a_machine_without_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)

        async def look() -> Answer:
            return await Lookups(asyncio.get_running_loop()).ask("a.test", V4, 10)

        assert asyncio.run(look()) == Answer(Result.FAILED)


class TestLookUp:
    @pytest.mark.parametrize(
        ("error", "result"),
        [
            (socket.EAI_NONAME, Result.NO_NAME),
            (socket.EAI_NODATA, Result.NO_ADDRESS),
            (socket.EAI_AGAIN, Result.UNAVAILABLE),
            (socket.EAI_MEMORY, Result.FAILED),
        ],
    )
    def test_what_the_resolver_means(
        self, monkeypatch: pytest.MonkeyPatch, error: int, result: Result
    ) -> None:
        def fail(*_: object) -> None:
            raise socket.gaierror(error, "so it is")

        monkeypatch.setattr(socket, "getaddrinfo", fail)
        assert look_up("a.test", V4) == Answer(result)

    def test_addresses_that_no_backend_can_have(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def answer(*hosts: str) -> None:
            entries = [(V6, socket.SOCK_STREAM, 6, "", (host, 0, 0, 0)) for host in hosts]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_: entries)

        answer("fd00::2", "fe80::1%eth0", "::", "ff02::1", "fd00::1", "fd00::2")
        assert look_up("a.test", V6) == found("fd00::1", "fd00::2")
        answer("fe80::1%eth0", "::")
        assert look_up("a.test", V6) == NO_ADDRESS

    def test_this_machine_has_an_address(self) -> None:
        assert look_up("127.0.0.1", V4) == found("127.0.0.1")
