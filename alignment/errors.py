"""The error tree. Every error a user can cause names where, what was found, what was expected, what to do.

Does not decide exit codes or colours: the CLI does. Errors are raised with keyword parts, so that a test
can ask for `error.found` instead of matching prose.
"""

from __future__ import annotations


class Written(str):
    """A value as its file has it, for `found`: equal to the text, shown with the quotes that it has there, or none."""

    shown: str

    def __new__(cls, text: str, shown: str) -> Written:
        made = super().__new__(cls, text)
        made.shown = shown
        return made

    def __repr__(self) -> str:
        return self.shown

    def __reduce__(self) -> tuple[object, ...]:
        return (Written, (str(self), self.shown))


class KubeAlignError(Exception):
    """Base of all errors that are the user's to mend; anything else is a bug of ours.

    Args:
        problem: one sentence, what is wrong.
        where: `file:line`, `file row 7`, `stage sft`, or a URL.
        found: the offending value, as the user wrote it.
        expected: the allowed values or the rule.
        hint: what to do next.
    """

    transient = False
    """Worth another attempt without a change by the user: the store did not answer, a worker was lost."""

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        found: object = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem, self.where, self.found, self.expected, self.hint = problem, where, found, expected, hint
        self.log: str | None = None
        """Where the output of the stage that failed lies, the traceback at its end; the pipeline says it."""
        super().__init__(problem)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.problem}" if self.where else self.problem]
        if self.found is not None:
            found = repr(self.found)
            lines.append(f"  found:    {found if len(found) <= 300 else found[:297] + '...'}")
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.hint is not None:
            lines.append(f"  hint:     {self.hint}")
        if self.log is not None:
            lines.append(f"  log:      {self.log}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only parts would be lost by Exception's own pickling, and errors cross Ray processes.
        return (_rebuild, (type(self), self.problem, self.where, self.found, self.expected, self.hint))


def _rebuild(
    kind: type[KubeAlignError],
    problem: str,
    where: str | None,
    found: object,
    expected: str | None,
    hint: str | None,
) -> KubeAlignError:
    return kind(problem, where=where, found=found, expected=expected, hint=hint)


class ConfigError(KubeAlignError):
    """The run file is wrong. Several findings are one error; see `ConfigErrors`."""


class ConfigErrors(ConfigError):
    """All findings of one `check`, so that a user mends them in one go."""

    def __init__(self, findings: list[ConfigError]) -> None:
        self.findings = findings
        super().__init__(f"{len(findings)} problem(s) in the run file")

    def __str__(self) -> str:
        return "\n".join(str(finding) for finding in self.findings)

    def __reduce__(self) -> tuple[object, ...]:
        return (ConfigErrors, (self.findings,))


class DataError(KubeAlignError):
    """Input rows or files that cannot be used (broken JSON, missing columns, an empty split)."""


class ModelError(KubeAlignError):
    """A model folder, tokenizer, template or adapter that cannot be used."""


class ArtifactError(KubeAlignError):
    """The artifact store cannot be read or written, or what it holds is not what its manifest says."""


class StageError(KubeAlignError):
    """A stage started and could not end."""


class Unforeseen(StageError):
    """A stage ended by an error that nobody here foresaw: a library's, or a bug of ours."""
