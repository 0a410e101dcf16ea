"""The error of users' mistakes."""

import pickle

from cluster.errors import UserError


def test_it_is_one_class_that_no_library_s_error_is_taken_for() -> None:
    assert not issubclass(UserError, ValueError)
    error = pickle.loads(pickle.dumps(UserError("data.path", "does not exist")))  # on its way from a worker
    assert (error.where, error.what, str(error)) == (
        "data.path",
        "does not exist",
        "data.path: does not exist",
    )
