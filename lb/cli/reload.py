"""``sockmap-lb reload``: a running balancer reads its configuration file again."""

import argparse

from lb.cli import remote


def main(options: argparse.Namespace) -> int:
    """Says what was changed; errors are the caller's to print."""
    answer = remote.ask(options.admin, "/reload", method="POST")
    for what, names in answer["changed"].items():
        print(f"{what.replace('_', ' ')}: {', '.join(names)}")
    if not answer["changed"]:
        print("nothing has changed")
    return 0
