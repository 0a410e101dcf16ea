"""The one error of this floor."""


class ClusterError(ValueError):
    """A cluster that cannot be reached or used, and what to do about it; one line.

    Args:
        where: the option, config field, variable or address at fault.
        what: what is wrong, and the remedy.
    """

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where, what)
        self.where = where
        self.what = what

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"
