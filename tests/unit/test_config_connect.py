"""When connections are made, in the configuration."""

import pytest

from lb.config import ConfigErrors, Connect, Pool, parse

TEXT = """\
listeners: [{{name: rpc, address: "0.0.0.0:7000"}}]
pools: [{{name: w{more}}}]
"""
BACKENDS = ", backends: [{name: a, address: 10.0.0.1:9000}]"


def read(more: str) -> Pool:
    return parse(TEXT.format(more=more), "lb.yaml").pools[0]


def refusal(more: str) -> str:
    with pytest.raises(ConfigErrors) as caught:
        read(more)
    (error,) = caught.value.errors
    return str(error)


def test_a_choice() -> None:
    assert read(BACKENDS).connect is Connect.EAGER
    assert read(BACKENDS + ", connect: eager").connect is Connect.EAGER
    assert read(BACKENDS + ", connect: on_demand, connections: per_client").connect is Connect.ON_DEMAND
    assert refusal(BACKENDS + ", connect: lazy") == (
        "lb.yaml:2: pools[0].connect: `lazy` is not a choice here; known choices: eager, on_demand"
    )


@pytest.mark.parametrize("backends", [BACKENDS, ", accept: 127.0.0.1:7900"])
@pytest.mark.parametrize("choice", Connect)
def test_shared_connections_are_made_once(backends: str, choice: Connect) -> None:
    assert refusal(f"{backends}, connections: shared, connect: {choice}") == (
        "lb.yaml:2: pools[0].connect: says when a client's own connections are made, but this pool shares"
        " connections; remove it, or use `connections: per_client`"
    )
