"""What is sent with a job, and what is not."""

import io
import json
import os
import random
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import UserError
from cluster.jobs import Jobs
from cluster.submit import collect, job_id, submit
from cluster.tokens import find_token

WORD = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "a.py", "sub/b.yaml", ".git/config", ".venv/bin/python", "runs/r/config.yaml", "__pycache__/a.pyc",
        ".env", "keys/id_rsa", "server.pem", "auth_token", "cluster-token", "data/x.parquet", "notes.txt",
        "big.bin",
    ):  # fmt: skip
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "outside").write_text("outside")
    (tmp_path / "work" / "link").symlink_to(tmp_path / "outside")
    return tmp_path / "work"


def test_secrets_results_and_caches_stay_here(folder: Path) -> None:
    found = collect(folder, excludes=["*.bin", "sub/"])
    assert set(found.files) == {"a.py", "data/x.parquet", "notes.txt"}
    assert found.bytes == sum(len(n) for n in found.files), "every file holds its name"


def test_what_is_left_out_is_not_looked_through(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment holds tens of thousands of files."""
    scanned, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: scanned.append(Path(place).name) or scandir(place))
    assert "big.bin" in collect(folder, excludes=["data/"]).files
    assert "sub" in scanned
    assert not {".git", ".venv", "runs", "data"} & set(scanned)


def test_git_decides_but_what_is_needed_goes(folder: Path) -> None:
    shutil.rmtree(folder / ".git")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".gitignore").write_text("data/\n*.txt\n")
    found = collect(folder, include=[folder / "data"])
    assert set(found.files) == {"a.py", "sub/b.yaml", "data/x.parquet", "big.bin"}


@pytest.mark.parametrize("name", ["mine", "notes.txt", "sub/a.yaml", "data/copy"])
@pytest.mark.parametrize("place", [shutil.copy, os.link, os.symlink], ids=lambda f: f.__name__)
def test_a_token_is_never_sent_whatever_its_name(
    folder: Path, tmp_path: Path, name: str, place: Callable[[Path, Path], object]
) -> None:
    """Not the file given, nor a copy of it or a link to it, nor by the data that a config names."""
    given = folder / "given"
    given.write_text("0" * 64 + "\n")
    (folder / "sub" / "zeros").write_text("0" * 63)
    (folder / name).unlink(missing_ok=True)
    place(given, folder / name)
    found = collect(folder, include=[folder / "data"], token=find_token(given))
    assert {"given", name}.isdisjoint(found.files)
    assert {"a.py", "sub/zeros", "data/x.parquet"} <= set(found.files)
    assert {"given", name} <= set(collect(folder).files), "without the token they would be sent"


def test_what_is_sent_is_listed(folder: Path) -> None:
    (folder / "huge.npy").write_bytes(bytes(2**21))
    found = collect(folder)
    listed = "6 files, 2.0 MiB; largest: huge.npy (2.0 MiB), data/x.parquet (0.0 KiB), sub/b.yaml (0.0 KiB)"
    assert str(found) == listed


def test_too_large_is_refused_with_the_largest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.submit.MAX_BYTES", 2**20)
    (folder / "huge.npy").write_bytes(random.Random(0).randbytes(2**21))
    with pytest.raises(UserError, match=r"holds 2.0 MiB.* largest: huge.npy \(2.0 MiB\)"):
        collect(folder)


class Server(BaseHTTPRequestHandler):
    """Takes the package and the job of Ray's client into the lists of its server."""

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/api/version" else 404, {"ray_version": ray.__version__})

    def do_PUT(self) -> None:
        with zipfile.ZipFile(io.BytesIO(self._body())) as archive:
            files = {i.filename: archive.read(i) for i in archive.infolist() if not i.is_dir()}
        getattr(self.server, "packages").append(files)  # noqa: B009
        self._answer(200, {})

    def do_POST(self) -> None:
        job = json.loads(self._body())
        getattr(self.server, "jobs").append(job)  # noqa: B009
        self._answer(200, {"job_id": job["submission_id"], "submission_id": job["submission_id"]})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, code: int, reply: dict[str, str]) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_ray_sends_what_was_listed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ray's own packing of the working directory that its client is handed."""
    (folder / ".gitignore").write_text("data/\n")
    (folder / "given").write_text("0" * 64)
    token = folder / "given"
    given: dict[str, Any] = {"env": {"A": "b"}, "pip": ["nir"], "metadata": {"run": "/r"}}
    given["extra"] = [(".spikeprune/c.yaml", b"c")]
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        vars(server).update(packages=[], jobs=[])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        jobs = Jobs(f"http://127.0.0.1:{server.server_port}", token_file=token)
        listed = collect(folder, include=[folder / "data"], token=jobs.token)
        submit(jobs, listed, ["x.py", "it's $HOME"], "mine", **given)
        server.shutdown()
    [package], [sent] = vars(server)["packages"], vars(server)["jobs"]
    assert set(package) == set(listed.files) | {".spikeprune/c.yaml"}
    assert package["data/x.parquet"] == b"data/x.parquet"
    assert "given" not in package
    assert sent["entrypoint"] == "python x.py 'it'\"'\"'s $HOME'"
    assert sent["metadata"] == {"run": "/r"}
    assert sent["runtime_env"]["env_vars"] == {"A": "b"}
    assert sent["runtime_env"]["pip"]["packages"] == ["nir"]
    assert "0" * 64 not in json.dumps(sent)
    assert capfd.readouterr().err == "", "Ray's client is quiet"


@pytest.mark.parametrize("name", ["cluster.py", "snn/__init__.py"])
def test_a_module_that_hides_ours_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("")
    with pytest.raises(UserError, match="hides spikeprune's module"):
        collect(folder)


@given(WORD)
def test_ids_hold_nothing_odd(name: str) -> None:
    assert all(c.isalnum() or c in "._-" for c in job_id(name))
    assert job_id(name).isascii()
