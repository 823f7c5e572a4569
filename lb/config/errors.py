"""What is wrong with a configuration, said once for all of it."""

from dataclasses import dataclass

ROOT = "file"


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One mistake of the operator: where it stands, what is wrong, and what to do about it.

    `path` reads like `pools[1].backends[0].address`, or `file` for the file itself. Lines count from 1;
    0 says that the file could not be read, and is printed as 1.
    """

    source: str
    line: int
    path: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.source}:{max(self.line, 1)}: {self.path}: {self.problem}; {self.remedy}"


class ConfigErrors(Exception):
    """A configuration was refused; `errors` holds all of its mistakes, sorted by line."""

    def __init__(self, errors: tuple[ConfigError, ...]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = errors


class ErrorLog:
    """Collects the mistakes of one source while it is read to the end."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._errors: list[ConfigError] = []

    def __len__(self) -> int:
        return len(self._errors)

    def add(self, line: int, path: str, problem: str, remedy: str) -> None:
        """Note a mistake."""
        self._errors.append(ConfigError(self._source, line, path or ROOT, problem, remedy))

    def refusal(self) -> ConfigErrors:
        """Return the exception that reports every mistake so far."""
        return ConfigErrors(tuple(sorted(self._errors, key=lambda error: error.line)))
