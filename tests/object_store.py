"""An S3 server of the tests' own, on loopback, spoken to over HTTP as any other."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from unittest import mock

from pipelines.storage import paths

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""In the environment of every process that reads or writes there."""


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The variables with which s3://bucket is on that server; they are set while it runs."""
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        **CREDENTIALS,
    }
    try:
        with mock.patch.dict(os.environ, variables):
            paths._opened.cache_clear()  # connections to servers before this one
            _make_bucket(port, process)
            yield variables
    finally:
        process.kill()
        process.wait()


def uri(path: str, variables: dict[str, str]) -> str:
    """A URI of the bucket for processes that were started before the server, with `CREDENTIALS`."""
    server = variables["AWS_ENDPOINT_URL"].removeprefix("http://")
    return f"s3://{BUCKET}/{path}?endpoint_override={server}&scheme=http&region=us-east-1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make_bucket(port: int, process: subprocess.Popen[bytes]) -> None:
    import requests

    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(requests.ConnectionError):
            requests.put(f"http://127.0.0.1:{port}/{BUCKET}", timeout=10).raise_for_status()
            return
        time.sleep(0.1)
    raise AssertionError("the S3 server does not start within 60 s")
