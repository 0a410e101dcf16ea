"""What can be said of a cluster without asking it."""

import pytest

from cluster.checks import readable_on_its_way


@pytest.mark.parametrize(
    ("url", "readable"),
    [
        ("http://127.0.0.1:8265", False),
        ("http://[::1]:8265", False),
        ("http://localhost/ray", False),
        ("https://head:8265", False),
        ("http://head:8265", True),
        ("http://[fd00::1]:8265", True),
        ("http://localhost.example.com", True),
    ],
)
def test_http_to_this_machine_is_read_by_nobody_else(url: str, readable: bool) -> None:
    assert readable_on_its_way(url) is readable
