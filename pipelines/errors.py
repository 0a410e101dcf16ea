"""The one error that a user's mistake ends in, by the name under which this floor knows it."""

from cluster.errors import UserError as UserError


def mistake(error: BaseException) -> UserError | None:
    """The user's mistake that a failure of Ray's stems from, if one does."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return UserError(seen.where, seen.what)
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
