"""Fixtures that tests of several rooms share."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

# `make test` tries the same examples every time; `make test-all` new ones. Neither goes by the clock.
timeless = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", timeless, derandomize=True)
settings.register_profile("new", timeless, print_blob=True)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("same" if config.getoption("markexpr") == "not slow" else "new")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets beside the checkout; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real datasets in ../shared/data")
    return SHARED_DATA


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, ingested once."""
    from pipelines.data.ingest import ingest

    folder = tmp_path_factory.mktemp("digits")
    ingest("digits", folder)
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests of the session that train in this process."""
    from cluster.connect import connect
    from tests.object_store import CREDENTIALS

    with mock.patch.dict(os.environ, CREDENTIALS), connect():
        yield
