"""Clients that ask all the time, in a thread of their own, until they are told to stop."""

import itertools
import threading
from collections.abc import Iterator
from typing import Self

from lb.framing import Framing
from tests.e2e.balancer import Balancer
from tests.e2e.load import Pipeline, pipelines
from tests.e2e.messages import Answer, message, read_answer
from tests.e2e.polling import LIMIT


class Crowd:
    """Leaves when its block ends; then all that was asked has been answered, or that raised the error."""

    def __init__(self, balancer: Balancer, clients: int, *, depth: int = 8, size: int = 100) -> None:
        self._balancer = balancer
        self._clients = clients
        self._depth = depth
        self._size = size
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="crowd")
        self.answers: list[Answer] = []
        self.asked = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(6 * LIMIT)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        framing: Framing = self._balancer.framing
        made: list[Pipeline] = []

        def make(_: int) -> Pipeline:
            made.append(Pipeline(self._requests(), depth=self._depth, framing=framing))
            return made[-1]

        try:
            found = pipelines(lambda: self._balancer.connect().sock, self._clients, make)
            self.answers = [read_answer(data) for answers in found for data in answers]
        except BaseException as error:  # noqa: BLE001 - it is raised where the block ends
            self._error = error
        self.asked = sum(pipeline.asked for pipeline in made)

    def _requests(self) -> Iterator[bytes]:
        for number in itertools.count():
            if self._stop.is_set():
                return
            yield message(number % (1 << 31), bytes(self._size))
