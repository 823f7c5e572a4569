"""What this machine cannot do."""


class MachineError(Exception):
    """The machine refuses something that serving needs; says what, and what to do about it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
