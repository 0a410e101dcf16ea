"""Jobs on a cluster, by Ray's own client: list them, look at them, follow their logs, stop them."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import UserError
from cluster.tokens import REMEDY, Token, find_token

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
SECONDS = 10.0
"""How long a dashboard may take to answer."""


class Jobs:
    """A cluster's job server, which is part of its dashboard.

    Args:
        address: ``http(s)://host:port``, or ``host:port``; ``RAY_API_SERVER_ADDRESS`` when not given.
        token_file: file with the cluster's token; where Ray looks for it when not given.

    Raises:
        UserError: no dashboard answers there, or it refuses the token, or it runs another version of Ray.
    """

    def __init__(self, address: str | None = None, *, token_file: Path | None = None) -> None:
        self.url = job_server(address)
        self.token = find_token(token_file)
        self.version = ask_dashboard(self.url, self.token)
        """Of Ray there."""
        _check_version(self.version, self.url)
        from ray.job_submission import JobSubmissionClient

        for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with self.errors(), _without_addresses():
            self.client = JobSubmissionClient(self.url, headers=_headers(self.token))

    def get(self, id: str) -> "JobDetails":
        """One job; a `UserError` where there is none of this id."""
        with self.errors(id):
            return self.client.get_job_info(id)

    def list(self) -> "list[JobDetails]":
        """All submitted jobs, newest first; drivers that connected without the job server are not jobs."""
        with self.errors():
            found = [job for job in self.client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0, reverse=True)

    def logs(self, id: str) -> str:
        """Everything a job has printed so far."""
        with self.errors(id):
            return self.client.get_job_logs(id)

    def stop(self, id: str) -> bool:
        """Ask a job to end (SIGTERM, then SIGKILL after Ray's three seconds); whether it was running."""
        with self.errors(id):
            return self.client.stop_job(id)

    def follow(self, id: str, show: Callable[[str], None]) -> "JobDetails":
        """Hand ``show`` everything that a job prints, from its start; the job as it ended.

        Raises:
            UserError: there is no such job, or the connection is lost.
        """
        import asyncio

        import aiohttp

        async def tail() -> None:
            async for text in self.client.tail_job_logs(id):
                show(text)

        self.get(id)
        try:
            asyncio.run(tail())
            while not (job := self.get(id)).status.is_terminal():
                time.sleep(0.3)
        except (RuntimeError, OSError, aiohttp.ClientError, UserError):
            again = f"spikeprune jobs logs {id} --follow --address {self.url}"
            raise UserError(
                id, f"lost the connection to {self.url}; the job may still be running: {again}"
            ) from None
        return job

    @contextmanager
    def errors(self, id: str | None = None) -> Iterator[None]:
        """Turn the errors of Ray's client into a `UserError` of one line."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise UserError("--address", f"{self.url} refuses the token; {REMEDY}") from None
        except (requests.RequestException, OSError):
            raise UserError("--address", f"no Ray dashboard answers at {self.url} any more") from None
        except RuntimeError as error:
            raise self._explained(str(error), id) from None

    def _explained(self, text: str, id: str | None) -> UserError:
        if id is not None and ("404" in text or "does not exist" in text):
            return UserError(id, f"is not a job at {self.url}; see spikeprune jobs list --address {self.url}")
        if "status code 500" in text or "No available agent" in text:
            return UserError(
                "--address",
                f"the job server at {self.url} takes no jobs ({last_line(text)}); if it was started just "
                "now, try again, else see dashboard.log and dashboard_agent.log in "
                "/tmp/ray/session_latest/logs on the head",
            )
        return UserError(id or "--address", last_line(text))


def exit_code(job: "JobDetails") -> int:
    """The exit code for whoever waited for a job: its own, 128 + n for signal n, 143 when stopped."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return 143
    code = job.driver_exit_code
    if code is None:
        return 1
    return 128 - code if code < 0 else code or 1


def seconds(job: "JobDetails") -> str:
    """How long a job has taken by now; empty before it starts."""
    if job.start_time is None:
        return ""
    return f"{(job.end_time / 1000 if job.end_time else time.time()) - job.start_time / 1000:.0f}"


def describe(job: "JobDetails") -> str:
    """How a job is doing, in words."""
    status, code, taken = job.status.value, exit_code(job), seconds(job)
    if status == "FAILED" and job.driver_exit_code is not None:
        ended = f"was killed by signal {code - 128}" if code > 128 else f"failed with exit code {code}"
        return f"{ended} after {taken} s"
    if status == "FAILED":
        return f"failed before its command ended ({last_line(job.message or '') or 'no reason given'})"
    if job.status.is_terminal():
        return f"{'succeeded' if status == 'SUCCEEDED' else 'was stopped'} after {taken} s"
    return f"{status.lower()} for {taken} s" if taken else status.lower()


def job_server(address: str | None) -> str:
    """The URL of a job server."""
    given = address or next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), None)
    where = "--address"
    if given is None:
        raise UserError(
            where, "give the cluster's dashboard, as http://HEAD:8265 (or set RAY_API_SERVER_ADDRESS)"
        )
    if given.startswith("ray://"):
        raise UserError(where, f"{given} is a Ray Client address; jobs go to the dashboard: http://HEAD:8265")
    if given == "auto":
        given = "127.0.0.1:8265"
    if "://" not in given:
        given = f"http://{given}"
    if not re.fullmatch(r"https?://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?(/[\w./-]*)?", given):
        raise UserError(where, f"{given!r:.100} is not the URL of a dashboard; give http://HEAD:8265")
    return given.rstrip("/")


def ask_dashboard(url: str, token: Token | None) -> str:
    """The version of Ray behind a dashboard, asked before Ray's client, which would wait without a limit."""
    import requests

    where = "--address"
    try:
        reply = requests.get(
            f"{url}/api/version",
            headers=_headers(token),
            timeout=SECONDS,
            allow_redirects=False,  # the token goes nowhere else
        )
    except requests.exceptions.SSLError:
        raise UserError(where, f"{url} does not speak TLS or has no trusted certificate") from None
    except requests.exceptions.Timeout:
        raise UserError(where, f"no Ray dashboard answers at {url} within {SECONDS:g} s") from None
    except (requests.RequestException, ValueError):  # a name that can be no host's is a ValueError
        raise UserError(
            where,
            f"no Ray dashboard answers at {url:.100}; is the cluster running, with its dashboard, and the "
            "port forwarded (ssh -L 8265:127.0.0.1:8265 HEAD)?",
        ) from None
    if reply.status_code in (401, 403):
        if token is None:
            raise UserError(where, f"{url} asks for a token; {REMEDY}")
        raise UserError(where, f"{url} refuses the token of {token.source}; {REMEDY}")
    try:
        return str(reply.json()["ray_version"])
    except (ValueError, KeyError, TypeError):
        raise UserError(where, f"{url} answers, but is no Ray dashboard; the usual port is 8265") from None


def _check_version(found: str, url: str) -> None:
    import ray

    if found.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise UserError(
            "--address",
            f"{url} runs Ray {found}, here is Ray {ray.__version__}; they must agree: install the "
            "cluster's version here, or use an image with this one there",
        )


def _headers(token: Token | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token.value}"} if token is not None else {}


@contextmanager
def _without_addresses() -> Iterator[None]:
    """Ray's client prefers these variables to the address that it is given."""
    kept = {v: os.environ.pop(v) for v in ADDRESS_VARIABLES if v in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def last_line(text: str) -> str:
    """The last line of ``text`` that says something."""
    lines = [line.strip() for line in text.splitlines() if any(c.isalnum() for c in line)]
    return lines[-1] if lines else ""
