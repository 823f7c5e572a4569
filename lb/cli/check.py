"""``sockmap-lb check``."""

import argparse
import sys

from lb import config


def main(options: argparse.Namespace) -> int:
    """Validates a file; errors are the caller's to print."""
    settings = config.load(options.file)
    for hint in config.hints(settings):
        print(f"{options.file}: {hint}", file=sys.stderr)
    backends = sum(len(pool.backends) for pool in settings.pools)
    print(
        f"{options.file}: fine: listeners: {len(settings.listeners)}, pools: {len(settings.pools)},"
        f" backends: {backends}"
    )
    return 0
