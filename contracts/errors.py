"""Every error that Winnow raises on purpose, and what each one costs.

    WinnowError
    |-- RunError            ends the run before any work: exit code 2
    |   |-- RecipeError     the recipe is wrong: place, value, what is allowed, the fix
    |   `-- SetupError      the machine, the workspace or the input is wrong
    `-- ShardError          one unit of work failed: the run goes on and ends with exit code 1

A row never raises: a row that cannot be processed gets nulls and a code in ``<stage>_error``.
"""

from __future__ import annotations


class WinnowError(Exception):
    """Base of every deliberate error."""


class RunError(WinnowError):
    """The run, or a part of it, cannot start; said before the work that it concerns."""


class RecipeError(RunError):
    """A recipe that cannot mean what it says.

    ``place`` is ``file:line`` where the recipe came from a file, and is filled in by the parser.
    """

    def __init__(self, message: str, *, place: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.place = place

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_recipe_error, (self.message, self.place))


def _rebuild_recipe_error(message: str, place: str | None) -> RecipeError:
    return RecipeError(message, place=place)


class SetupError(RunError):
    """The environment does not allow the run: a missing file, an unwritable workspace, no GPU."""


class ShardError(WinnowError):
    """A unit of work could not be finished.

    ``retryable`` says whether trying the same unit again can help (a lost node, a full disk) or
    cannot (the source file changed under the run).
    """

    def __init__(
        self,
        message: str,
        *,
        stage: str = "",
        shard: str = "",
        uid: str = "",
        retryable: bool = True,
    ) -> None:
        super().__init__(message)
        self.message, self.stage, self.shard, self.uid = message, stage, shard, uid
        self.retryable = retryable

    def __str__(self) -> str:
        where = ", ".join(
            f"{k} {v}"
            for k, v in (("stage", self.stage), ("shard", self.shard), ("row", self.uid))
            if v
        )
        return f"{self.message} ({where})" if where else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (
            _rebuild_shard_error,
            (self.message, self.stage, self.shard, self.uid, self.retryable),
        )


def _rebuild_shard_error(
    message: str, stage: str, shard: str, uid: str, retryable: bool
) -> ShardError:
    return ShardError(message, stage=stage, shard=shard, uid=uid, retryable=retryable)
