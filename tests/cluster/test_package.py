"""What is sent with a job, what is not, and that a job's words survive every shell."""

import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.package import LAUNCH_SCRIPT, LAUNCHER, pack
from cluster.submit import job_id, requirements

WORD = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)


def names(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


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


def test_secrets_results_and_caches_stay_here(folder: Path, tmp_path: Path) -> None:
    done = pack(folder, tmp_path / "p.zip", excludes=["*.bin", "sub/"])
    assert names(done.path) == {"a.py", "data/x.parquet", "notes.txt", LAUNCHER}
    assert done.bytes == done.path.stat().st_size


def test_git_decides_but_what_is_needed_goes(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.rmtree(folder / ".git")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".gitignore").write_text("data/\n*.txt\n")
    done = pack(folder, tmp_path / "p.zip", include=[folder / "data"])
    assert names(done.path) == {"a.py", "sub/b.yaml", ".gitignore", "data/x.parquet", "big.bin", LAUNCHER}


def test_same_content_same_bytes(folder: Path, tmp_path: Path) -> None:
    first = pack(folder, tmp_path / "1.zip").path.read_bytes()
    (folder / "a.py").touch()
    assert pack(folder, tmp_path / "2.zip").path.read_bytes() == first


def test_too_large_is_refused_with_the_largest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import random

    monkeypatch.setattr("cluster.package.MAX_BYTES", 2**20)

    (folder / "huge.npy").write_bytes(random.Random(0).randbytes(2**21))
    with pytest.raises(ClusterError, match=r"packs to 2.0 MiB.* largest: huge.npy \(2.0 MiB\)"):
        pack(folder, tmp_path / "p.zip")


@pytest.mark.parametrize("name", ["cluster.py", "snn/__init__.py"])
def test_a_module_that_hides_ours_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("")
    with pytest.raises(ClusterError, match="hides spikeprune's module"):
        pack(folder, tmp_path / "p.zip")


@settings(max_examples=12, deadline=None)
@given(st.lists(WORD, max_size=4))
def test_words_reach_the_interpreter_as_given(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    """By the launcher and /bin/sh, as a job server starts it."""
    import shlex
    import sys

    folder = tmp_path_factory.mktemp("job")
    (folder / "job.sh").write_text(LAUNCH_SCRIPT)
    show = "import sys; sys.stdout.buffer.write(chr(0).join(sys.argv[1:]).encode())"
    done = subprocess.run(
        shlex.join(["sh", "job.sh", "-c", show, *words]),
        shell=True,
        cwd=folder,
        env={"SPIKEPRUNE_PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == "\0".join(words)
    assert {p.name for p in folder.iterdir()} == {"job.sh"}


@given(WORD)
def test_ids_hold_nothing_odd(name: str) -> None:
    assert all(c.isalnum() or c in "._-" for c in job_id(name))
    assert job_id(name).isascii()


def test_requirements_from_files(tmp_path: Path) -> None:
    file = tmp_path / "r.txt"
    file.write_text("# comment\n\nnir>=1.0\n")
    assert requirements(["optuna", str(file)]) == ["optuna", "nir>=1.0"]
    with pytest.raises(ClusterError, match="cannot be read"):
        requirements(["none.txt"])
