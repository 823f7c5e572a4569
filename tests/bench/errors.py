"""What a measurement stops for."""


class ProgramError(Exception):
    """A program did not start, did not end well, or is not there; or an answer was wrong."""
