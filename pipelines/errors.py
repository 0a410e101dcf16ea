"""The one error that a user's mistake ends in, by the name under which this floor knows it."""

from cluster.errors import UserError as UserError
