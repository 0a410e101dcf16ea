"""The one error that a user's mistake ends in."""


class UserError(Exception):
    """What is wrong, where, and what to do about it; the command prints it as one line.

    It is no `ValueError`, so that nobody who expects a library's takes it for one.

    Args:
        where: the config field, file, option, variable or address at fault.
        what: what is wrong with it, and what is allowed or how to mend it.
    """

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where, what)  # both, so that it can be pickled on its way from a worker
        self.where = where
        self.what = what

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def mistake(error: BaseException) -> UserError | None:
    """The user's mistake that a failure of Ray's stems from, if one does."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return UserError(seen.where, seen.what)
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
