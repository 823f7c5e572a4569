"""``sockmap-lb run``."""

import argparse
import logging

from lb import app, config, logs


def main(options: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    logs.setup(options.log_format)
    settings = config.load(options.config)
    for hint in config.hints(settings):
        logging.getLogger(__name__).warning("%s: %s", options.config, hint)
    app.run(settings, options.config)
    return 0
