"""The one exception that reaches the operator."""

from collections.abc import Sequence


class ClawError(Exception):
    """A refusal or failure, in words that say what to do.

    code: stable and machine-readable (``name_taken``); message: one sentence with the fix, never a secret.
    problems: every (code, message) when several checks failed at once, else just this one.
    """

    def __init__(self, code: str, message: str, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.problems = tuple(problems) or ((code, message),)

    @classmethod
    def several(cls, problems: Sequence[tuple[str, str]]) -> "ClawError":
        """One error for all failed checks of a batch; ``problems`` is not empty."""
        if len(problems) == 1:
            return cls(*problems[0])
        numbered = " ".join(f"({n}) {message}" for n, (_, message) in enumerate(problems, 1))
        return cls("several_problems", f"{len(problems)} problems: {numbered}", problems)

    def as_json(self) -> dict[str, object]:
        """The ``error`` object of every ``clawctl --json`` answer."""
        return {
            "code": self.code,
            "message": self.message,
            "problems": [{"code": code, "message": message} for code, message in self.problems],
        }
