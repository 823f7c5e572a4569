"""The short form of ``fuzz``, and what it is made of."""

import random
from collections import Counter

import pytest

from lb.framing import PRESETS, Direction, Framer
from tests.e2e.chaos.fuzz import FRAMINGS, SIDES, fuzz
from tests.e2e.chaos.mutation import build, limits, mutate, split
from tests.e2e.lab import Lab

MESSAGES = 20_000


def test_mutated_messages(lab: Lab) -> None:
    total = fuzz(lab, messages=MESSAGES, seed=1)
    assert not total.objections, "\n".join(total.texts)
    assert total.messages.total() >= MESSAGES
    assert set(total.messages) == {f"{framing} {side}" for framing in FRAMINGS for side in SIDES}
    assert total.healthy > 100


@pytest.mark.parametrize("name", PRESETS)
def test_mutations_are_of_every_kind(name: str) -> None:
    """Some streams are whole, some malformed in each way that the framing knows, some end too early."""
    framing = PRESETS[name]
    source = random.Random(1)
    ends: Counter[str] = Counter()
    for _ in range(2000):
        framer = Framer(framing, Direction.REQUEST)
        data = b"".join(mutate(framing, build(framing, n, b"body"), source) for n in range(10))
        for piece in split(data, source):
            framer.feed(piece)
            if framer.error is not None:
                break
        ends[framer.error.reason if framer.error else "half" if framer.pending else "whole"] += 1
    assert ends.keys() >= {"whole", "half"}
    assert "too_short" in ends or framing.length.adjust >= framing.min_message
    assert ends.keys() & {"oversize", "unexpected_response"}


def test_limits_of_a_length_of_four_bytes() -> None:
    assert limits(PRESETS["length-prefixed"]) == [
        *(0, 3, 4, (1 << 20) - 4, (1 << 20) - 3, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
    ]
