"""Where in a program's life something went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UnusableProgram(Exception):
    """The program does not keep the contract: nothing failed, it is of another kind."""


class Stage(Exception):  # noqa: N818 - it says where; what went wrong is its cause
    """Something went wrong in one stage; the error itself is the cause."""

    def __init__(self, stage: str) -> None:
        """Keep the stage's name."""
        super().__init__(stage)
        self.stage = stage


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Name the stage of whatever is raised inside."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise Stage(name) from error
