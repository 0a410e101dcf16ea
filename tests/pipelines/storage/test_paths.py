"""Storage named by URIs: servers of S3 and of Google, and pyarrow's and fsspec's other filesystems."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from pipelines.storage.paths import Folder, below, name_of, parent, uri_of, why_unreadable
from pipelines.storage.sync import STATE, Mirror
from tests.object_store import s3_server
from tests.pipelines.data.object_stores import BUCKET, object_store


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with s3_server() as variables:
        yield variables


@pytest.fixture(scope="module")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with object_store(tmp_path_factory.mktemp("gs")) as address:
        yield address


@pytest.fixture(params=["s3", "gs", "file", "fsspec", "local"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return Folder.of(f"s3://bucket/{tmp_path.name}")
    if request.param == "gs":
        server = request.getfixturevalue("gs")
        return Folder.of(
            f"gs://anonymous@{BUCKET}/{tmp_path.name}?scheme=http&endpoint_override={server}"
            "&retry_limit_seconds=9"
        )
    if request.param == "fsspec":
        return Folder.of(f"memory://{tmp_path}")
    if request.param == "local":
        return Folder.of(tmp_path / "there")
    return Folder.of(f"file://{tmp_path}/there")


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("s3://bucket/runs", "s3://bucket/runs"),
        (Path("s3://bucket/runs"), "s3://bucket/runs"),
        (Path("file:///tmp/x"), "file:///tmp/x"),
        ("memory:///tmp/x", "memory:///tmp/x"),
        ("runs", None),
        ("/a:/b", None),
        ("c:/runs", None),
        ("~/runs", None),
    ],
)
def test_what_is_a_uri(path: str | Path, uri: str | None) -> None:
    assert uri_of(path) == uri


def test_parts_of_a_uri_with_options() -> None:
    uri = "s3://bucket/runs?region=eu-west-1"
    assert below(uri, "a/b") == "s3://bucket/runs/a/b?region=eu-west-1"
    assert parent(below(uri, "a")) == uri
    assert name_of(below(uri, "a")) == "a"
    assert (below("/a?b", "c"), parent("/a?b/c"), name_of("/a?b/c")) == ("/a?b/c", "/a?b", "c")


def test_files_are_whole_copies(remote: Folder, tmp_path: Path) -> None:
    assert remote.files() == []
    assert remote.why_unwritable() is None
    assert remote.files() == [], "the probe is gone"
    content = bytes(range(256)) * 40_000  # more than one block
    (tmp_path / "a").write_bytes(content)
    remote.upload("deep/er/a", tmp_path / "a")
    remote.write("b", b"b")
    assert {entry.path: entry.size for entry in remote.files()} == {"deep/er/a": len(content), "b": 1}
    remote.download("deep/er/a", tmp_path / "new" / "a")
    assert (tmp_path / "new" / "a").read_bytes() == content
    remote.write("b", b"other")
    assert remote.read("b") == b"other"
    for _ in range(2):
        remote.remove("b")
    assert not remote.exists("b")


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != STATE)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_a_mirror_moves_what_has_changed(remote: Folder, tmp_path: Path) -> None:
    one, other = (Mirror(tmp_path / name, remote) for name in ("one", "other"))
    (one.local / "checkpoints" / "0").mkdir(parents=True)
    (one.local / "checkpoints" / "0" / "weights").write_bytes(b"w0")
    (one.local / "metrics").write_bytes(b"1")
    one.push()
    other.pull()
    assert contents(other.local) == {"checkpoints/0/weights": b"w0", "metrics": b"1"}
    before = (other.local / "metrics").stat().st_mtime_ns
    (one.local / "checkpoints" / "0").rename(one.local / "checkpoints" / "1")
    one.push(lambda name: name.startswith("checkpoints/"))
    other.pull()
    assert contents(other.local) == contents(one.local) == {"checkpoints/1/weights": b"w0", "metrics": b"1"}
    assert (other.local / "metrics").stat().st_mtime_ns == before, "what is the same is not moved again"
    (one.local / "metrics").write_bytes(b"2")
    one.push()
    (other.local / "metrics").write_bytes(b"never sent")
    (other.local / "left").write_bytes(b"over")
    other.pull(lambda name: not name.startswith("checkpoints/"))
    assert contents(other.local) == contents(one.local)


def test_what_a_cleaner_of_temporary_files_deletes_stays_there(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "here", Folder.of(f"file://{tmp_path}/there"))
    mirror.local.mkdir()
    for name in ("config", "old"):
        (mirror.local / name).write_bytes(name.encode())
    mirror.push()
    for name in ("config", "old"):
        (mirror.local / name).unlink()
    for _ in range(2):
        mirror.push(lambda name: name == "old")
        assert [entry.path for entry in mirror.remote.files()] == ["config"]
    mirror.pull()
    assert contents(mirror.local) == {"config": b"config"}
    mirror.remote.remove("config")
    mirror.pull()
    assert not list(mirror.local.iterdir()), "nothing is there, nothing is here"


STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "d/x", "d/e/y"]), st.integers(0, 3)), max_size=12
)


@settings(max_examples=20)
@given(steps=STEPS)
def test_two_mirrors_end_the_same(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int]]
) -> None:
    """Whoever writes has what the storage has before, as a run that goes on elsewhere does."""
    folder = tmp_path_factory.mktemp("mirror")
    remote = Folder.of(f"file://{folder}/there")
    mirrors = {name: Mirror(folder / name, remote) for name in "abc"}
    expected: dict[str, bytes] = {}
    for who, name, value in steps:
        mirror = mirrors[who]
        mirror.pull()
        assert contents(mirror.local) == expected
        if value:
            expected[name] = bytes([value])
            (mirror.local / name).parent.mkdir(parents=True, exist_ok=True)
            (mirror.local / name).write_bytes(expected[name])
        else:
            expected.pop(name, None)
            (mirror.local / name).unlink(missing_ok=True)
        mirror.push(lambda name: True)
    assert {e.path: remote.read(e.path) for e in remote.files()} == expected


def test_names_that_lead_elsewhere_are_not_copied(s3: dict[str, str], tmp_path: Path) -> None:
    for name in ("fine", "../../outside"):
        url = f"{s3['AWS_ENDPOINT_URL']}/bucket/odd/x/{name.replace('/', '%2F')}"
        requests.put(url, data=b"x", timeout=10).raise_for_status()
    there = Folder.of("s3://bucket/odd/x")
    assert {e.path for e in there.files()} == {"fine", "../../outside"}
    Mirror(tmp_path / "a" / "b" / "here", there).pull()
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"fine", STATE}


def test_what_is_wrong_is_told_in_one_line(s3: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^storage: nosuch://x cannot be opened"):
        Folder.of("nosuch://x")
    reason = Folder.of("s3://no-such-bucket/x").why_unwritable()
    assert reason is not None
    assert "bucket" in reason.lower()
    assert "\n" not in reason
    assert why_unreadable("s3://bucket/none") is not None
    Folder.of("s3://bucket/there").write("data", b"x")
    assert why_unreadable("s3://bucket/there/data") is None


def test_credentials_are_not_told(s3: dict[str, str]) -> None:
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    assert secret not in repr(Folder.of("s3://bucket/x"))
