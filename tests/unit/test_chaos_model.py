"""The model of the chaos suite objects to every kind of wrong, and to nothing else."""

from typing import Any

import pytest

from tests.e2e.chaos.history import ClientHistory, End, UpstreamHistory
from tests.e2e.chaos.model import Verdict, judge
from tests.e2e.chaos.wire import (
    AGAIN,
    FIRST,
    FORGED,
    LEAST,
    MOST,
    NO_SEQUENCE,
    Cutter,
    Label,
    MalformedError,
    answer,
    forged,
    read,
    request,
)


def client(number: int = 1, sent: bytes = bytes(3), answers: Any = None, **how: Any) -> ClientHistory:
    """Three requests, all answered, unless told otherwise."""
    wanted = [(sequence, FIRST) for sequence, silent in enumerate(sent) if not silent]
    settings: dict[str, Any] = {
        "behaviour": "load",
        "fifo": False,
        "well": True,
        "began": 10.0,
        "ended": 12.0,
    }
    settings |= {"end": End.LEFT, "complete": True}
    return ClientHistory(
        client=number,
        sent=bytearray(sent),
        answers=wanted if answers is None else answers,
        **(settings | how),
    )


def upstream(*reads: tuple[int, int], **how: Any) -> UpstreamHistory:
    return UpstreamHistory("a", 10.0, list(reads), **how)


ALL = upstream((1, 0), (1, 1), (1, 2))


def objections(*histories: ClientHistory, at: Any = (ALL,), dropped: int = 0) -> dict[str, int]:
    return judge(histories, at, dropped).objections


class TestNothingToObjectTo:
    def test_all_answered(self) -> None:
        verdict = judge([client()], [ALL], 0)
        assert verdict.objections == {}
        assert (verdict.sent, verdict.answered, verdict.arrived) == (3, 3, 3)

    def test_any_order(self) -> None:
        assert objections(client(answers=[(2, FIRST), (0, FIRST), (1, FIRST)])) == {}

    @pytest.mark.parametrize("end", [End.RESET, End.EOF])
    def test_a_loss_that_was_told(self, end: End) -> None:
        failed = upstream((1, 0), failed=11.0)
        verdict = judge([client(answers=[], end=end)], [failed], 0)
        assert verdict.objections == {}
        assert verdict.reported == 3

    def test_a_second_answer_of_a_backend_that_gave_two(self) -> None:
        answers = [(0, FIRST), (0, AGAIN), (1, FIRST), (2, FIRST), (NO_SEQUENCE, FORGED)]
        verdict = judge([client(answers=answers)], [ALL], 0)
        assert verdict.objections == {}
        assert verdict.extra == 2

    def test_what_was_made_up_of_a_client_that_was_relayed(self) -> None:
        answers = [(0, FIRST), (0, AGAIN), (1, FIRST), (2, FIRST), (NO_SEQUENCE, FORGED)]
        assert objections(client(answers=answers, shared=True)) == {}

    def test_silent_messages_that_were_counted(self) -> None:
        assert objections(client(sent=b"\1\1\1"), at=[upstream((1, 1), failed=11.0)], dropped=2) == {}

    def test_a_client_that_went_by_itself(self) -> None:
        assert objections(client(answers=[], end=End.GONE, well=False), at=[]) == {}


class TestWrongs:
    """One history each, and the one objection."""

    def test_lost(self) -> None:
        assert objections(client(answers=[(0, FIRST), (2, FIRST)], end=End.WAITING)) == {"missing": 1}

    def test_lost_at_a_good_end(self) -> None:
        assert objections(client(answers=[(0, FIRST)], end=End.SHORT)) == {"missing": 2}
        assert objections(client(answers=[(0, FIRST)], end=End.LEFT)) == {"missing": 2}

    def test_no_end(self) -> None:
        assert objections(client(end=End.WAITING)) == {"missing": 1}

    def test_silent_messages_that_nobody_counted(self) -> None:
        at = [upstream((1, 1), failed=11.0)]
        assert objections(client(sent=b"\1\1\1"), at=at, dropped=1) == {"missing": 1}
        assert objections(client(sent=b"\1\1\1"), at=at) == {"missing": 2}

    def test_doubled_request(self) -> None:
        assert objections(client(), at=[ALL, upstream((1, 1))]) == {"doubled": 1}
        assert objections(client(), at=[upstream((1, 0), (1, 0), (1, 1), (1, 2))]) == {"doubled": 1}

    def test_doubled_answer(self) -> None:
        answers = [(0, FIRST), (0, FIRST), (1, FIRST), (2, FIRST)]
        assert objections(client(answers=answers)) == {"doubled": 1}
        answers = [(0, FIRST), (0, AGAIN), (0, AGAIN), (1, FIRST), (2, FIRST)]
        assert objections(client(answers=answers)) == {"doubled": 1}

    @pytest.mark.parametrize(
        ("said", "wrong"), [([(0, AGAIN)], "doubled"), ([(NO_SEQUENCE, FORGED)], "astray")]
    )
    def test_what_was_made_up_on_a_shared_upstream(self, said: Any, wrong: str) -> None:
        answers = [(0, FIRST), *said, (1, FIRST), (2, FIRST)]
        at = [upstream((2, 0), (1, 0), (1, 1), (1, 2), deceived=True)]
        mine, other = client(answers=answers, shared=True), client(2, sent=b"\0", shared=True)
        assert objections(mine, other, at=at) == {wrong: 1}

    def test_astray(self) -> None:
        assert objections(client(foreign=[2])) == {"astray": 1}

    def test_an_answer_to_what_was_not_asked(self) -> None:
        answers = [(0, FIRST), (1, FIRST), (2, FIRST), (3, FIRST)]
        assert objections(client(answers=answers))["astray"] == 1
        answers = [(0, FIRST), (1, FIRST), (2, FIRST)]
        assert objections(client(sent=b"\0\1\0", answers=answers))["astray"] == 1

    def test_a_request_that_nobody_sent(self) -> None:
        assert objections(client(), at=[ALL, upstream((1, 3))]) == {"astray": 1}
        assert objections(client(), at=[ALL, upstream((9, 0))]) == {"astray": 1}

    def test_corrupted(self) -> None:
        assert objections(client(corrupted=1)) == {"corrupted": 1}
        assert objections(client(), at=[ALL, upstream(corrupted=2)]) == {"corrupted": 2}

    def test_reordered(self) -> None:
        answers = [(1, FIRST), (0, FIRST), (2, FIRST)]
        assert objections(client(fifo=True, answers=answers)) == {"reordered": 1}

    def test_an_error_without_a_failure(self) -> None:
        assert objections(client(end=End.RESET)) == {"unearned": 1}
        assert objections(client(end=End.EOF), at=[ALL, upstream((2, 0), failed=15.0)])["unearned"] == 1
        assert "unearned" not in objections(client(end=End.EOF), at=[ALL, upstream((2, 0), failed=11.0)])

    @pytest.mark.parametrize(("when", "wrong"), [(5.0, {"unearned": 1}), (11.0, {}), (15.0, {"unearned": 1})])
    def test_a_failure_before_the_first_request(self, when: float, wrong: dict[str, int]) -> None:
        assert objections(client(end=End.RESET), at=[ALL, upstream(failed=when)]) == wrong

    def test_a_client_that_may_go_on_after_garbage(self) -> None:
        assert objections(client(well=False, end=End.WAITING)) == {"tolerated": 1}

    def test_rounds_add_up(self) -> None:
        total = Verdict()
        for _ in range(2):
            total.add(judge([client(foreign=[2])], [ALL], 1))
        assert total.objections == {"astray": 2}
        assert (total.sent, total.dropped, total.ends) == (6, 2, {"left": 2})
        assert len(total.texts) == 2


class TestWire:
    @pytest.mark.parametrize("size", [LEAST, 25, 1000, 65536])
    def test_labels(self, size: int) -> None:
        asked = request(7, 5, size, silent=True, fifo=True)
        assert len(asked) == size
        label = read(asked)
        assert label == Label(7, 5, 5, 0, 0, response=False, silent=True, fifo=True, shared=False)
        said = read(answer(label, 3, size, AGAIN))
        assert said == Label(7, 5, 5, 3, AGAIN, response=True, silent=False, fifo=False, shared=False)
        lie = read(forged(label, 3, 99))
        assert lie == Label(
            7, NO_SEQUENCE, 99, 3, FORGED, response=True, silent=False, fifo=False, shared=False
        )

    def test_an_id_that_was_exchanged(self) -> None:
        def exchange(message: bytes, number: int) -> bytes:
            return message[:4] + number.to_bytes(4, "big") + message[8:]

        asked = read(exchange(request(7, 5, 40, shared=True), 1 << 20 | 3))
        assert asked == Label(7, 5, 1 << 20 | 3, 0, 0, response=False, silent=False, fifo=False, shared=True)
        said = answer(asked, 3, 40)
        assert read(said) is None  # its asker knows no such id
        assert read(exchange(said, 5)) == Label(
            7, 5, 5, 3, FIRST, response=True, silent=False, fifo=False, shared=False
        )

    def test_every_changed_byte_shows(self) -> None:
        asked = request(7, 5, 40)
        for at in range(len(asked)):
            wrong = bytearray(asked)
            wrong[at] ^= 1
            assert read(bytes(wrong)) is None

    def test_cutting(self) -> None:
        messages = [request(1, sequence, 24 + 13 * sequence) for sequence in range(50)]
        stream = b"".join(messages)
        for step in (1, 3, 24, 1000, len(stream)):
            cutter = Cutter()
            got = [m for at in range(0, len(stream), step) for m in cutter.feed(stream[at : at + step])]
            assert got == messages
            assert not cutter.pending

    @pytest.mark.parametrize("head", [b"\x10\0\0\x20", b"\x50\0\0\x17", b"\x50\x04\0\x01"])
    def test_what_is_no_message(self, head: bytes) -> None:
        assert MOST == 0x40000
        with pytest.raises(MalformedError):
            Cutter().feed(head + bytes(30))
