"""Interfaces that gloo and nccl are told to use."""

import os
from unittest import mock

import pytest
import ray

from cluster.network import choose_interface, interface_of, missing_interfaces


def with_variables(**variables: str) -> "mock._patch_dict":
    return mock.patch.dict(os.environ, variables, clear=True)


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({}, False),
        ({"GLOO_SOCKET_IFNAME": "lo"}, False),
        ({"GLOO_SOCKET_IFNAME": "lo,none0"}, True),
        ({"GLOO_SOCKET_IFNAME": "l"}, True),
        ({"NCCL_SOCKET_IFNAME": "lo"}, False),
        ({"NCCL_SOCKET_IFNAME": "l"}, False),  # the beginning of a name
        ({"NCCL_SOCKET_IFNAME": "=l"}, True),
        ({"NCCL_SOCKET_IFNAME": "=lo"}, False),
        ({"NCCL_SOCKET_IFNAME": "none,lo"}, False),
        ({"NCCL_SOCKET_IFNAME": "none"}, True),
        ({"NCCL_SOCKET_IFNAME": "^none"}, False),
    ],
)
def test_settings_that_name_no_interface_are_found(variables: dict[str, str], missing: bool) -> None:
    with with_variables(**variables):
        expected = tuple(f"{k}={v}" for k, v in variables.items()) if missing else ()
        assert missing_interfaces() == expected


def test_workers_of_one_machine_talk_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    with with_variables(GLOO_SOCKET_IFNAME="mine"):
        choose_interface()
        assert os.environ == {"GLOO_SOCKET_IFNAME": "mine", "NCCL_SOCKET_IFNAME": "lo"}
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "192.0.2.77")
    with with_variables():
        choose_interface()
        assert os.environ == {}
