"""``sockmap-lb run``."""

import argparse

from lb import app, config, logs


def main(options: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    logs.setup(options.log_format)
    app.run(config.load(options.config), options.config)
    return 0
