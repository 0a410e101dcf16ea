"""The interface that workers talk to each other by."""

import os
from unittest import mock

import pytest
import ray

from pipelines.training.distributed import choose_interface, interface_of


def with_variables(**variables: str) -> "mock._patch_dict":
    return mock.patch.dict(os.environ, variables, clear=True)


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
