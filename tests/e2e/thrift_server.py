"""A server of ``demo.thrift``, of stock thriftpy2: ``thrift_server NAME PORT``. Prints what it is to note."""

import sys
from pathlib import Path

import thriftpy2
from thriftpy2.rpc import make_server
from thriftpy2.transport import TFramedTransportFactory

demo = thriftpy2.load(str(Path(__file__).with_name("demo.thrift")), "demo_thrift")


class _Demo:
    def __init__(self, name: str) -> None:
        self._name = name

    def told(self, number: int) -> str:
        return f"{number} told by {self._name}"

    a_method_with_a_name_so_long_that_the_sequence_id_lies_outside_of_the_first_bytes = told

    def refuse(self) -> None:
        raise demo.Refused(self._name)

    def note(self, number: int) -> None:
        sys.stdout.write(f"noted {number}\n")
        sys.stdout.flush()


def main() -> None:
    """Serve until the process is ended."""
    name, port = sys.argv[1:]
    server = make_server(
        demo.Demo,
        _Demo(name),
        "127.0.0.1",
        int(port),
        trans_factory=TFramedTransportFactory(),
        client_timeout=0,
    )
    server.serve()


if __name__ == "__main__":
    main()
