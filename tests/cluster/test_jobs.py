"""Jobs on a real cluster that asks for a token: sent, followed, stopped, and every mistake."""

import json
import os
import re
import signal
import subprocess
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from cluster.errors import UserError
from cluster.jobs import Jobs, exit_code
from cluster.ray_private import refresh
from pipelines import cli
from tests.cluster.heads import BIN, Head, Said, command_lines, environment, spikeprune

pytestmark = pytest.mark.xdist_group("ray")


def call(head: Head, project: Path, *args: str, **env: str) -> Said:
    verb, rest = (args[:1], args[1:]) if args[0] == "submit" else (args[:2], args[2:])
    return spikeprune(
        *verb, "--address", head.url, *rest, cwd=project, env={"RAY_AUTH_TOKEN_PATH": str(head.token), **env}
    )


def one_line(said: Said, code: int, *parts: str) -> None:
    """Failed with this code and one line of our own at the end, without a trace of the inside."""
    assert said.code == code, said
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("spikeprune: "), said
    for part in parts:
        assert part in last, said
    assert "Traceback" not in said.err


class User:
    """Somebody who mistypes, in this process: each time one line, and exit code 2."""

    def __init__(self, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.home, self._capfd = home, capfd

    def fails(self, line: str, *args: str, **env: str) -> str:
        clean = environment(HOME=str(self.home), **env)
        with mock.patch.dict(os.environ, clean, clear=True):
            code = cli.main(list(args))
            refresh()
        error = self._capfd.readouterr().err
        assert code == 2, error
        assert error.startswith("spikeprune: "), error
        assert error.count("\n") == 1, error
        assert line in error
        return error


@pytest.fixture
def user(
    tmp_path: Path, project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> User:
    monkeypatch.chdir(project)
    return User(tmp_path, capfd)


def wait_for(head: Head, project: Path, id: str, text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in call(head, project, "jobs", "logs", id).out:
        assert time.monotonic() < deadline, f"{text!r} in the log of {id} within 120 s"
        time.sleep(0.2)


def processes(*words: str) -> list[int]:
    """Python's processes with these words in their command."""
    lines = command_lines()
    return [pid for pid, line in lines.items() if line[1 : len(words) + 1] == list(words)]


def test_run_is_sent_and_followed_to_the_storage(head: Head, project: Path, tmp_path: Path) -> None:
    """A training by one process, so that this stays short; on Ray's workers below."""
    storage = tmp_path / "on the cluster"
    local = ("--cluster.engine", "local", "--cluster.workers", "1")
    mine = project / "mine"  # a token of any name, in the folder that is sent, that others can read
    mine.write_text(head.token.read_text())
    mine.chmod(0o644)
    sent = call(
        head, project, "submit", "--follow", "--storage", str(storage), "--token-file", str(mine),
        "--", "run", "small.yaml", *local,
    )  # fmt: skip
    mine.unlink()
    assert sent.code == 0, sent
    id = sent.out.splitlines()[0]
    assert re.fullmatch(r"small-\d{4}-\d{6}-[0-9a-f]{4}", id)
    assert re.search(r"sending from .*: \d+ files, [\d.]+ [KM]iB; largest: data/digits/train.*iB\)", sent.err)
    assert f"warning: {mine} can be read by others; chmod 600 {mine}" in sent.err
    assert f"its run will be in {storage}/small on the cluster" in sent.err
    assert "train epoch 2/2: test accuracy" in sent.out
    assert f"{id}: succeeded" in sent.err
    assert (storage / "small" / "report.html").exists()
    listed = call(head, project, "jobs", "list")
    assert listed.code == 0
    assert any(id in line and "SUCCEEDED" in line for line in listed.out.splitlines())

    secret = head.token.read_text().strip()
    runtime = head.temp.glob("ray/session_latest/runtime_resources/working_dir_files/**/*")
    packages = [p for p in runtime if p.is_file()]
    assert any(p.name == "small.yaml" for p in packages)
    for path in [*storage.rglob("*"), *head.temp.glob("ray/session_latest/logs/**/*"), *packages]:
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    for said in (sent, listed):
        assert secret not in said.out + said.err


@pytest.mark.slow
def test_exit_code_3_signal_and_words(head: Head, project: Path) -> None:
    """Both jobs at a time; their words reach them as given, whatever a shell would make of them."""
    words = ["a b", "$(touch pwned)", "`x`", "'", '"', ";exit 9", "*", "\\", "é\n2"]
    with ThreadPoolExecutor() as pool:
        failing = pool.submit(
            call, head, project, "submit", "--follow", "--env", "MINE", "--", "python", "script.py", "3",
            "0", *words, MINE="from-here",
        )  # fmt: skip
        killed = pool.submit(
            call,
            head,
            project,
            "submit",
            "--follow",
            "--id",
            "to-kill",
            "--",
            "python",
            "script.py",
            "0",
            "600",
        )
        deadline = time.monotonic() + 120
        while not (victims := processes("script.py", "0", "600")):
            assert time.monotonic() < deadline, "the job starts within 120 s"
            time.sleep(0.1)
        secret = head.token.read_text().strip()
        assert secret not in str(command_lines())
        os.kill(victims[0], signal.SIGKILL)
    one_line(failing.result(), 3, "failed with exit code 3")
    assert f"words {['3', '0', *words]} mine from-here" in failing.result().out
    assert f"by {BIN}/python" in failing.result().out, "the first on the path of ray start"
    assert "from-here" not in failing.result().err
    one_line(killed.result(), 137, "to-kill: was killed by signal 9")
    assert "the end" not in killed.result().out
    status = call(head, project, "jobs", "status", "to-kill")
    assert status.code == 0
    assert "signal 9" in status.out
    elsewhere = call(head, project, "submit", "--follow", "--python", "/none/python", "--", "python", "x.py")
    one_line(elsewhere, 127, "failed with exit code 127")
    assert "/none/python: not found" in elsewhere.out


@pytest.mark.slow
def test_ctrl_c_detaches_and_stop_stops(head: Head, project: Path) -> None:
    command = [str(BIN / "spikeprune"), "submit", "--address", head.url, "--token-file", str(head.token)]
    command += ["--follow", "--id", "long", "--", "python", "script.py", "0", "601"]
    following = subprocess.Popen(
        command,
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )
    wait_until_there = time.monotonic() + 120
    while "long" not in call(head, project, "jobs", "list").out:
        assert time.monotonic() < wait_until_there
    wait_for(head, project, "long", "words")
    following.send_signal(signal.SIGINT)
    out, err = following.communicate(timeout=60)
    assert following.returncode == 130, (out, err)
    assert f"spikeprune jobs logs long --follow --address {head.url} --token-file {head.token}" in err
    assert "Traceback" not in err
    assert "long: running" in call(head, project, "jobs", "status", "long").out
    with mock.patch.dict(os.environ, environment(), clear=True):
        jobs, shown = Jobs(head.url, token_file=head.token), list[str]()
    with ThreadPoolExecutor() as pool:
        followed = pool.submit(jobs.follow, "long", shown.append)
        while "words" not in "".join(shown):
            assert not followed.done(), "its log is shown while it runs"
            time.sleep(0.1)
        stopped = call(head, project, "jobs", "stop", "long")
    assert (exit_code(followed.result()), "".join(shown)) == (143, jobs.logs("long"))
    assert stopped.code == 0
    assert "long: was stopped" in stopped.err
    assert not processes("script.py", "0", "601")
    one_line(call(head, project, "jobs", "logs", "long", "--follow"), 143, "long: was stopped")
    one_line(call(head, project, "submit", "--id", "long", "--", "python", "script.py"), 2, "long", "already")


MISTAKES = [
    pytest.param({"RAY_AUTH_TOKEN": "0" * 64}, "refuses the token of RAY_AUTH_TOKEN", id="wrong token"),
    pytest.param({}, "asks for a token; ", id="no token"),
    pytest.param({"RAY_AUTH_TOKEN_PATH": "/none"}, "no token can be read from /none", id="no token file"),
]


@pytest.mark.parametrize(("env", "line"), MISTAKES)
def test_tokens(head: Head, user: User, env: dict[str, str], line: str) -> None:
    user.fails(line, "jobs", "list", "--address", head.url, **env)
    user.fails(line, "train", "small.yaml", "--address", head.address, **env)
    assert not (user.home / ".ray").exists()


def test_the_token_is_found_wherever_ray_looks_for_it(head: Head, user: User, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(head.token.read_text())
    homes = ({"HOME": str(tmp_path)}, {"HOME": "/none", "RAY_AUTH_TOKEN": head.token.read_text().strip()})
    for env in (*homes, {"HOME": "/none", "RAY_AUTH_TOKEN_PATH": str(head.token)}):
        with mock.patch.dict(os.environ, environment(**env), clear=True):
            assert cli.main(["jobs", "list", "--address", head.url]) == 0, env
            refresh()


def test_no_cluster(user: User) -> None:
    user.fails("no Ray dashboard answers at http://127.0.0.1:9", "jobs", "list", "--address", "127.0.0.1:9")
    user.fails("--address: give the cluster's dashboard", "jobs", "list")
    user.fails("--address: 'http://a b' is not the URL", "jobs", "list", "--address", "http://a b")
    user.fails("--address: ray://h:1 is a Ray Client address", "jobs", "list", "--address", "ray://h:1")
    nobody = "cluster.address: no Ray cluster answers at 127.0.0.1:9 (connection refused)"
    user.fails(nobody, "train", "small.yaml", "--address", "127.0.0.1:9")


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("500 Internal Server Error\n\nServer got itself in trouble", "Server got itself in trouble"),
        ("No available agent to submit job, please try again later", "No available agent"),
    ],
)
def test_a_job_server_that_fails_is_told_from_a_mistake(answer: str, line: str) -> None:
    """Its answers when the head's token file is gone, or its agent: word for word, from one."""
    jobs = object.__new__(Jobs)
    jobs.url = "http://h:8265"
    line = rf"^--address: the job server at http://h:8265 takes no jobs \(.*{line}.*see dashboard.log"
    with pytest.raises(UserError, match=line), jobs.errors():
        raise RuntimeError(f"Request failed with status code 500: {answer}.")


def test_other_version(head: Head, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """This side says that it is another Ray; the cluster's answer is its own."""
    import ray

    monkeypatch.setattr(ray, "__version__", "2.41.0")
    token = {"RAY_AUTH_TOKEN_PATH": str(head.token)}
    for words, address in ((("submit",), head.url), (("train", "small.yaml"), head.address)):
        after = ("--", "train", "small.yaml") if words == ("submit",) else ()
        line = user.fails(f"{address} runs Ray 2.6", *words, "--address", address, *after, **token)
        assert "Ray 2.41.0" in line
        assert "they must agree" in line


def test_what_else_is_refused_before_anything_is_sent(head: Head, user: User) -> None:
    token = {"RAY_AUTH_TOKEN_PATH": str(head.token)}
    user.fails("none: is not a job", "jobs", "status", "none", "--address", head.url, **token)
    for words, line in [
        (("--", "train", "small.yaml", "--train.lr", "-1"), "train.lr"),
        (("--", "train", "small.yaml", "--data.path", "none"), "data.path: none does not exist"),
        (("--", "train", "small.yaml", "--data.path", "../x"), "data.path: ../x is outside of what is sent"),
        (("--", "fly"), "'fly' is no command to send"),
        (("--", "train", "--address", "auto"), "--address: belongs before the --"),
        ((), "nothing to run"),
        (("--id", "a b", "--", "python", "x.py"), "--id: 'a b' is not possible"),
        (("--env", "RAY_AUTH_TOKEN=x", "--", "python", "x.py"), "--env: RAY_AUTH_TOKEN stays here"),
        (("--env", "WANDB_API_KEY=x", "--", "python", "x.py"), "--env: WANDB_API_KEY stays here"),
        (("--env", "DATA=s3://a:b@c/d", "--", "python", "x.py"), "--env: DATA stays here"),
        (("--env", "NOT_SET", "--", "python", "x.py"), "--env: NOT_SET has no value here"),
        (("--working-dir", "none", "--", "python", "x.py"), "--working-dir: none is not a folder"),
    ]:
        user.fails(line, "submit", "--address", head.url, *words, **token)


@pytest.mark.slow
def test_trains_on_the_clusters_workers(head: Head, project: Path, tmp_path: Path) -> None:
    sent = call(
        head, project, "submit", "--follow", "--storage", str(tmp_path), "--", "train", "small.yaml",
        "--name", "ray",
    )  # fmt: skip
    assert sent.code == 0, sent
    records = [json.loads(line) for line in (tmp_path / "ray" / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 2


@pytest.mark.slow
def test_searches_and_doctor_use_the_cluster_that_they_are_sent_to(
    head: Head, project: Path, tmp_path: Path
) -> None:
    (project / "wide.yaml").write_text(
        (project / "small.yaml").read_text().replace("name: small", "name: wide")
        + "search: {space: {train.lr: [0.05, 0.1]}, trials: 2}\n"
    )
    sent = call(
        head, project, "submit", "--follow", "--storage", str(tmp_path), "--", "search", "wide.yaml",
    )  # fmt: skip
    assert sent.code == 0, sent
    assert (tmp_path / "wide" / "search.parquet").exists()
    asked = call(head, project, "submit", "--follow", "--", "doctor", "small.yaml")
    assert asked.code == 0, asked
    assert "ok    cluster: auto: 1 nodes" in asked.out


@pytest.mark.slow
def test_a_run_on_remote_storage_is_read_there(head: Head, project: Path, tmp_path: Path) -> None:
    storage = f"file://{tmp_path}/bucket"
    sent = call(
        head, project, "submit", "--follow", "--storage", storage, "--", "train", "small.yaml",
        "--name", "far", "--cluster.engine", "local", "--cluster.workers", "1",
    )  # fmt: skip
    assert sent.code == 0, sent
    assert f"its run will be in {storage}/far" in sent.err
    assert (tmp_path / "bucket/far/checkpoints/train.safetensors").exists()
    shown = spikeprune("report", f"{storage}/far", cwd=project)
    assert shown.code == 0, shown


def wheel(folder: Path) -> Path:
    """A package of one line, as pip installs it without a network."""
    path = folder / "tinyextra-1.5-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("tinyextra.py", "NUMBER = 15\n")
        info = "tinyextra-1.5.dist-info"
        out.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyextra\nVersion: 1.5\n")
        out.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.slow
def test_requirements_come_on_top_of_the_cluster_s(head: Head, project: Path, tmp_path: Path) -> None:
    (project / "extra.py").write_text("import ray, pipelines, tinyextra\nprint('extra', tinyextra.NUMBER)\n")
    sent = call(
        head, project, "submit", "--follow", "--pip", str(wheel(tmp_path)), "--", "python", "extra.py",
    )  # fmt: skip
    assert sent.code == 0, sent
    assert "extra 15" in sent.out
    plain = call(head, project, "submit", "--follow", "--", "python", "extra.py")
    assert plain.code == 1, "only the job that asked for it has it"
