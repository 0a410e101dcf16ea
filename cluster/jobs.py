"""Jobs on a cluster: list them, look at them, follow their logs, stop them."""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.head import SECONDS, Versions
from cluster.tokens import REMEDY, Token, find_token

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
PRODUCT = "spikeprune"
"""Key of our jobs' metadata: what `Job.metadata` must hold to be one of ours."""
_log = logging.getLogger(__name__)
_NOISE = re.compile(r"^(Running entrypoint for job |\S+ \S+\tINFO job_manager\.py:)")


@dataclass(frozen=True)
class Job:
    """One job as the cluster tells it."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    exit_code: int | None
    """Of its command, once it has ended by itself; negative for a signal."""
    message: str
    entrypoint: str
    metadata: dict[str, str]
    started: float | None
    """Seconds since 1970."""
    ended: float | None
    node: str | None
    """Id of the node on which its command runs."""
    env: dict[str, str] = field(default_factory=dict, repr=False)
    """Environment variables that it was given."""

    @property
    def over(self) -> bool:
        """Whether it has ended, one way or the other."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def result(self) -> int:
        """The exit code for who waited for it: its own, 128 + n for signal n, 143 when stopped."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return 143
        if self.exit_code is None:
            return 1
        return 128 - self.exit_code if self.exit_code < 0 else self.exit_code or 1

    @property
    def signal(self) -> int | None:
        """The signal that ended its command, which a shell in between tells as 128 + n."""
        if self.exit_code is None or 0 <= self.exit_code <= 128:
            return None
        return -self.exit_code if self.exit_code < 0 else self.exit_code - 128


class Jobs:
    """A cluster's job server (part of its dashboard).

    Args:
        address: ``http(s)://host:port``, or ``host:port``; ``RAY_API_SERVER_ADDRESS`` when not given.
        token_file: the cluster's token; where Ray looks for it when not given.

    Raises:
        ClusterError: nobody answers there, or it asks for another token, or runs another version.
    """

    def __init__(self, address: str | None = None, *, token_file: Path | None = None) -> None:
        self.url = job_server(address)
        token = find_token(token_file)
        self.headers = {"Authorization": f"Bearer {token.value}"} if token is not None else {}
        self.versions = ask_dashboard(self.url, token)
        _check_version(self.versions, self.url)
        from ray.job_submission import JobSubmissionClient

        for name in ("job.sdk", "dashboard_sdk"):  # they set their own level
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        with _without_addresses():
            self.client = JobSubmissionClient(self.url, headers=dict(self.headers))

    def get(self, id: str) -> Job:
        """One job.

        Raises:
            ClusterError: there is no such job.
        """
        with self._errors(id):
            return _job(self.client.get_job_info(id))

    def list(self) -> list[Job]:
        """All jobs that were submitted, the newest first; drivers that connected by themselves are none."""
        with self._errors():
            found = [_job(d) for d in self.client.list_jobs() if d.submission_id]
        return sorted(found, key=lambda j: j.started or 0.0, reverse=True)

    def logs(self, id: str) -> str:
        """All that a job has printed so far."""
        return _without_noise(self._raw_logs(id))

    def stop(self, id: str) -> bool:
        """Ask a job to end (SIGTERM, some seconds later SIGKILL); whether it was running."""
        with self._errors(id):
            return bool(self.client.stop_job(id))

    def forget(self, id: str) -> None:
        """Take a job that has ended off the list."""
        with self._errors(id):
            self.client.delete_job(id)

    def follow(self, id: str, show: Callable[[str], None]) -> Job:
        """Pass on all that a job prints, from its start, until it has ended.

        Args:
            id: the job.
            show: gets whole lines, or what there is of one.

        Raises:
            ClusterError: no such job, or the connection is lost for good.
        """
        self.get(id)
        seen, failures = 0, 0

        def pass_on(text: str) -> None:
            nonlocal seen
            seen += len(text)
            if shown := _without_noise(text):
                show(shown)

        while True:
            whole, job = True, None
            try:
                for text in _tail(self.client, id, skip=seen):
                    pass_on(text)
            except (RuntimeError, OSError, ValueError):
                whole = False  # whether the job or the connection has ended is asked next
            try:
                job = self.get(id)
                if not whole:  # there may be a proxy between that lets plain requests through alone
                    pass_on(self._raw_logs(id)[seen:])
            except ClusterError:
                failures += 1
                if failures > 3 and job is not None and job.over:
                    _log.warning("the end of the log of %s cannot be had", id)
                    return job
                if failures > 3:
                    raise ClusterError(
                        id,
                        f"lost the connection to {self.url}; the job may go on: spikeprune jobs status {id}",
                    ) from None
                time.sleep(1)
                continue
            failures = 0
            if job.over:
                return job
            time.sleep(0.1 if whole else 1)

    def _raw_logs(self, id: str) -> str:
        with self._errors(id):
            return str(self.client.get_job_logs(id))

    @contextmanager
    def _errors(self, id: str | None = None) -> Iterator[None]:
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise ClusterError("--address", f"{self.url} refuses the token; {REMEDY}") from None
        except (requests.RequestException, OSError):
            raise ClusterError("--address", f"no Ray dashboard answers at {self.url} any more") from None
        except RuntimeError as error:
            text = str(error)
            if id is not None and ("404" in text or "does not exist" in text):
                raise ClusterError(
                    id, f"is not a job at {self.url}; see spikeprune jobs list --address {self.url}"
                ) from None
            if "status code 500" in text and "got itself in trouble" in text:
                raise ClusterError(
                    "--address",
                    f"the job server at {self.url} fails by itself; see dashboard.log and "
                    "dashboard_agent.log in /tmp/ray/session_latest/logs on the head (has a token's file "
                    "moved there?)",
                ) from None
            if "No available agent" in text:
                raise ClusterError(
                    "--address",
                    f"{self.url} has no agent that takes jobs; if it was started just now, try again, "
                    "else see dashboard_agent.log in /tmp/ray/session_latest/logs on the head (address in "
                    "use: another Ray there has its port; ray start --dashboard-agent-listen-port)",
                ) from None
            raise ClusterError(id or "--address", _last_line(text)) from None


def job_server(address: str | None) -> str:
    """The URL of a job server.

    Raises:
        ClusterError: no address, or one of another kind.
    """
    given = address or next((os.environ[v] for v in ADDRESS_VARIABLES if os.environ.get(v)), None)
    if given is None:
        raise ClusterError(
            "--address", "give the cluster's dashboard, as http://HEAD:8265 (or set RAY_API_SERVER_ADDRESS)"
        )
    if given.startswith("ray://"):
        raise ClusterError(
            "--address", f"{given} is a Ray Client address; jobs go to the dashboard: http://HEAD:8265"
        )
    if given == "auto":
        given = "127.0.0.1:8265"
    if "://" not in given:
        given = f"http://{given}"
    if not re.fullmatch(r"https?://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?(/[\w./-]*)?", given):
        raise ClusterError("--address", f"{given!r} is not the URL of a dashboard; give http://HEAD:8265")
    return given.rstrip("/")


def ask_dashboard(url: str, token: Token | None) -> Versions:
    """The version of the cluster behind a dashboard.

    Raises:
        ClusterError: nobody answers there, or it asks for another token.
    """
    import requests

    where = "--address"
    try:
        reply = requests.get(
            f"{url}/api/version",
            headers={"Authorization": f"Bearer {token.value}"} if token is not None else {},
            timeout=SECONDS,
            allow_redirects=False,  # a token goes nowhere else
        )
    except requests.exceptions.SSLError:
        raise ClusterError(where, f"{url} does not speak TLS or has no trusted certificate") from None
    except requests.exceptions.Timeout:
        raise ClusterError(where, f"no Ray dashboard answers at {url} within {SECONDS:g} s") from None
    except requests.RequestException:
        raise ClusterError(
            where,
            f"no Ray dashboard answers at {url}; is the cluster running, with its dashboard, and the port "
            "forwarded (ssh -L 8265:127.0.0.1:8265 HEAD)?",
        ) from None
    if reply.status_code in (401, 403):
        if token is None:
            raise ClusterError(where, f"{url} asks for a token; {REMEDY}")
        raise ClusterError(where, f"{url} refuses the token of {token.source}; {REMEDY}")
    try:
        return Versions(str(reply.json()["ray_version"]))
    except (ValueError, KeyError, TypeError):
        raise ClusterError(where, f"{url} answers, but is no Ray dashboard; the usual port is 8265") from None


def _check_version(found: Versions, url: str) -> None:
    import ray

    there, here = found.ray.split("."), ray.__version__.split(".")
    if there[:2] != here[:2]:
        raise ClusterError(
            "--address",
            f"{url} runs Ray {found.ray}, here is Ray {ray.__version__}; they must agree: install the "
            "cluster's version here, or use an image with this one there",
        )


def _job(details: Any) -> Job:
    given = (details.runtime_env or {}).get("env_vars") or {}
    return Job(
        id=details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        exit_code=details.driver_exit_code,
        message=_last_line(details.message or ""),
        entrypoint=details.entrypoint,
        metadata=dict(details.metadata or {}),
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        node=details.driver_node_id,
        env={k: v for k, v in given.items() if k not in ("PYTHONUNBUFFERED", "SPIKEPRUNE_JOB_PIP")},
    )


def _tail(client: Any, id: str, *, skip: int) -> Iterator[str]:
    """What a job prints, without its first ``skip`` characters; ends with the job or the connection."""
    import aiohttp

    loop = asyncio.new_event_loop()
    stream = client.tail_job_logs(id)
    try:
        while True:
            waiting = asyncio.ensure_future(_next(stream), loop=loop)
            try:
                text = loop.run_until_complete(waiting)
            except aiohttp.ClientError as error:
                raise OSError(str(error)) from None
            except BaseException:  # Ctrl-C: the connection must not wait for its other end
                waiting.cancel()
                loop.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
                raise
            if text is None:
                return
            skipped = min(skip, len(text))
            skip -= skipped
            if text[skipped:]:
                yield text[skipped:]
    finally:
        loop.run_until_complete(stream.aclose())
        loop.close()


async def _next(stream: Any) -> str | None:
    return await anext(stream, None)


@contextmanager
def _without_addresses() -> Iterator[None]:
    """Ray's client prefers these variables to the address it is given."""
    kept = {v: os.environ.pop(v) for v in ADDRESS_VARIABLES if v in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _without_noise(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not _NOISE.match(line))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if any(c.isalnum() for c in line)]
    return lines[-1] if lines else ""
