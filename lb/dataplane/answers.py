"""What the programs have counted of a backend's responses."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answers:
    """Requests of a backend that got their response, and how many of the responses were errors.

    ``forgiven``: the errors that had come when the latest response came that was none. Errors are known only
    of framings with a ``response_error``.
    """

    answered: int
    errors: int
    forgiven: int

    @property
    def good(self) -> int:
        """Responses that were no errors; for a moment it may be too few."""
        return self.answered - self.errors
