"""The short form: each mix for a moment. The long form is ``python -m tests.e2e.chaos``."""

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.chaos.mixes import MIXES
from tests.e2e.chaos.rounds import Chaos, Round

# A seed that found something stays here.
SEEDS = {"calm": 1, "rude": 2, "slow": 3, "ends": 4, "forget": 1, "liars": 1, "garbage": 7, "all": 1}
SECONDS = 2.5


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None]) -> Iterator[Chaos]:
    need("ip", "bpftool")
    with Chaos(tmp_path_factory.mktemp("chaos"), seed=1) as running:
        yield running


@pytest.mark.parametrize("mix", MIXES)
def test_a_round(chaos: Chaos, mix: str) -> None:
    verdict = chaos.play(Round(mix, SEEDS[mix], SECONDS))
    assert not verdict.objections, "\n".join(verdict.texts)
    assert verdict.sent > 1000
    assert verdict.answered > 1000
