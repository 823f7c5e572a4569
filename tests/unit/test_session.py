import pytest

from lb.session import Event, IllegalEventError, State, step


def test_a_whole_life() -> None:
    state = State.ADMITTED
    for event, expected in (
        (Event.INSERTED, State.SPLICED),
        (Event.ENDING, State.DRAINING),
        (Event.ENDED, State.CLOSED),
    ):
        state = step(state, event)
        assert state is expected


@pytest.mark.parametrize("state", [State.ADMITTED, State.SPLICED, State.DRAINING])
def test_everything_alive_can_fail(state: State) -> None:
    assert step(state, Event.FAILED) is State.CLOSED


@pytest.mark.parametrize("event", Event)
def test_nothing_happens_after_the_end(event: Event) -> None:
    with pytest.raises(IllegalEventError, match=f"{event.name} cannot happen to a connection that is CLOSED"):
        step(State.CLOSED, event)


def test_a_spliced_connection_drains_before_it_ends() -> None:
    with pytest.raises(IllegalEventError):
        step(State.SPLICED, Event.ENDED)
