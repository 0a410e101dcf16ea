"""Runs and data in a bucket: as in a folder, also when killed and gone on with elsewhere."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import UserError
from pipelines import cli
from pipelines.config import Config
from pipelines.config.load import dump_config, load_config
from pipelines.runs.run import fetch_run, run
from pipelines.runs.run_folder import check_run, run_path, run_uri
from pipelines.storage.paths import Folder
from pipelines.storage.sync import mirror_of
from tests.object_store import s3_server, uri
from tests.pipelines.data.object_stores import BUCKET as GOOGLES
from tests.pipelines.data.object_stores import object_store
from tests.pipelines.training.conftest import QUIET, kill_after, metrics, small, wait_for
from tests.pipelines.training.test_loop import LOCAL as ONE_PROCESS

pytestmark = pytest.mark.xdist_group("ray")
# This process and a command of its own may count threads differently; figures depend on them in last bits.
LOCAL = {**ONE_PROCESS, "cluster.threads": "1"}


@pytest.fixture(scope="module")
def server(digits: Path) -> Iterator[dict[str, str]]:
    """With the digits in it."""
    with s3_server() as variables:
        data = Folder.of("s3://bucket/digits")
        for path in digits.iterdir():
            data.upload(path.name, path)
        yield variables


def there(config: Config) -> dict[str, int]:
    """Files of a config's run in the bucket."""
    address = run_uri(config)
    assert address is not None
    return {entry.path: entry.size for entry in Folder.of(address).files()}


def clean_by_age(folder: Path) -> None:
    """What a system's cleaner of temporary files does in the midst of a long run."""
    wait_for(lambda: len(metrics(folder)) >= 2, "2 records")
    for name in ("config.yaml", "provenance.json"):
        (folder / name).unlink()


def wait_until_still(config: Config) -> None:
    """Workers may outlive a killed driver for a while."""
    before: dict[str, int] = {"": 0}
    while (now := there(config)) != before:
        before = now
        time.sleep(3 if config.cluster.engine == "ray" else 0)


def killed_after_two_epochs(config: Config, temporary: Path, log: Path) -> bool:
    """Run it as a command of its own and kill that; false if it ended before."""
    log.with_suffix(".yaml").write_text(dump_config(config))
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "TMPDIR": str(temporary),
    }
    command = [sys.executable, "-m", "spikeprune", "run", str(log.with_suffix(".yaml"))]
    with log.open("wb") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as driver:
        wait_for(lambda: len(metrics(run_path(config))) >= 2 or driver.poll() is not None, "2 records")
        driver.kill()
    return driver.returncode == -signal.SIGKILL


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where working copies lie; what this machine keeps of a run is gone once it is removed."""
    folder = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))  # Ray's sockets lie there too: a short path
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    monkeypatch.setattr("tempfile.tempdir", None)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The job in a folder, by the plain process."""
    return run(small(tmp_path_factory.mktemp("calm"), digits, **LOCAL, name="calm"), console=QUIET)


def bucket(digits: Path, **overrides: str) -> Config:
    """The job, with data and runs in the bucket."""
    places = {"data.path": "s3://bucket/digits", "storage": "s3://bucket/runs"}
    return small(Path("x"), digits, **{**places, **overrides})


def test_a_run_in_a_bucket_is_the_one_in_a_folder(
    server: dict[str, str], elsewhere: Path, calm: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = bucket(digits, **LOCAL, name="calm")
    cleaner = threading.Thread(target=clean_by_age, args=(run_path(config),))
    cleaner.start()
    folder = run(config, console=QUIET)
    cleaner.join()
    assert metrics(folder) == metrics(calm)
    local = {p.relative_to(calm).as_posix() for p in calm.rglob("*") if p.is_file()}
    assert set(there(config)) == local, "nothing more, and no checkpoint that is not kept"
    remote = Folder.of("s3://bucket/runs/calm")
    for name in ("checkpoints/retrain.safetensors", "masks.safetensors", "scores.parquet"):
        assert remote.read(name) == (calm / name).read_bytes(), name

    shutil.rmtree(elsewhere / f"spikeprune-{os.getuid()}")
    with pytest.raises(UserError, match=r"^name: run 'calm' exists in s3://bucket/runs; --resume"):
        run(config, console=QUIET)
    assert cli.main(["report", "s3://bucket/runs/calm"]) == 0
    assert remote.exists("report.html")
    assert cli.main(["prune", "s3://bucket/runs/calm", "--sparsity", "0.5", "--no-retrain"]) == 0
    assert Folder.of("s3://bucket/runs/calm-pruned").exists("checkpoints/prune.safetensors")
    capsys.readouterr()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_removed_there_may_begin_anew(resume: bool, elsewhere: Path, digits: Path) -> None:
    config = bucket(digits, **LOCAL, name="again", storage=f"file://{elsewhere}/bucket")
    mirror = mirror_of(run_path(config), run_uri(config))
    assert mirror is not None
    for name in ("config.yaml", "checkpoints/00-train-0000/progress.json"):
        (mirror.local / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror.local / name).write_text("{}")
    mirror.push()
    shutil.rmtree(elsewhere / "bucket" / "again")
    fetch_run(mirror, resume=resume)
    check_run(config, resume=resume)


def test_what_is_wrong_with_a_bucket_is_told_before_the_run(
    server: dict[str, str], elsewhere: Path, digits: Path
) -> None:
    for field, address, line in [
        ("storage", "s3://no-such-bucket/runs", "no such bucket"),
        ("storage", "nosuch://x", "cannot be opened"),
        ("data.path", "s3://bucket/none", r"has no file train\*.parquet"),
    ]:
        with pytest.raises(UserError, match=rf"^{field}: {address}.*{line}") as caught:
            run(bucket(digits, **LOCAL, **{field: address}), console=QUIET)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param(LOCAL, id="local"), pytest.param({}, id="ray")])
def test_a_killed_run_goes_on_from_the_bucket(
    engine: dict[str, str], server: dict[str, str], elsewhere: Path, calm: Path, tmp_path: Path, digits: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """On a machine that has nothing of it."""
    expected = calm if engine else request.getfixturevalue("undisturbed")
    places = {"storage": uri("killed", server), "data.path": uri("digits", server)}
    log = tmp_path / "log"
    for attempt in range(5):  # a busy machine may look at a run only once it has ended
        config = bucket(digits, **{**engine, **places, "name": f"{'local' if engine else 'ray'}{attempt}"})
        if killed_after_two_epochs(config, elsewhere, log):
            break
    else:
        pytest.fail(log.read_text())
    wait_until_still(config)
    shutil.rmtree(elsewhere / f"spikeprune-{os.getuid()}")
    assert any(name.startswith("checkpoints/") for name in there(config)), log.read_text()
    folder = run(config, resume=True, console=QUIET)
    assert metrics(folder) == metrics(expected)
    assert "metrics.jsonl" in there(config)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param(LOCAL, id="local"), pytest.param({}, id="ray")])
def test_a_run_on_google_s_storage(
    engine: dict[str, str], elsewhere: Path, calm: Path, tmp_path: Path, digits: Path, ray_session: None,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """Data and run; reported from there by a machine that has nothing of it."""
    expected = calm if engine else request.getfixturevalue("undisturbed")
    with object_store(tmp_path) as address:
        place = f"gs://anonymous@{GOOGLES}/%s?scheme=http&endpoint_override={address}&retry_limit_seconds=20"
        for path in digits.iterdir():
            Folder.of(place % "digits").upload(path.name, path)
        places = {"storage": place % "runs", "data.path": place % "digits", "name": expected.name}
        config = bucket(digits, **{**engine, **places})
        assert metrics(run(config, console=QUIET)) == metrics(expected)
        local = {p.relative_to(expected).as_posix() for p in expected.rglob("*") if p.is_file()}
        kept = {
            name for name in local if not name.startswith("checkpoints/") or name.endswith(".safetensors")
        }
        assert kept - set(there(config)) == set()
        shutil.rmtree(elsewhere / f"spikeprune-{os.getuid()}")
        assert cli.main(["report", place % f"runs/{expected.name}"]) == 0
        assert "report.html" in there(config)


@pytest.mark.slow
def test_a_killed_worker_goes_on_from_the_bucket(
    server: dict[str, str], elsewhere: Path, undisturbed: Path, digits: Path, ray_session: None
) -> None:
    """Ray's checkpoints go to the bucket from the workers, and come from there."""
    config = bucket(digits, storage=uri("hurt", server), name="hurt", **{"data.path": uri("digits", server)})
    killer = kill_after(run_path(config), 2, "TrainWorker")
    folder = run(config, console=QUIET)
    killer.join()
    assert metrics(folder) == metrics(undisturbed)
    names = there(config)
    assert {"report.json", "scores.parquet", "metrics.jsonl", "checkpoints/retrain.safetensors"} - set(
        names
    ) == {"report.json"}
    assert len({n.split("/")[1] for n in names if n.startswith("checkpoints/") and n.count("/") > 1}) == 2
    stored = load_config(folder / "config.yaml")
    assert stored.storage == config.storage


@pytest.mark.slow
def test_a_bucket_that_vanishes_is_named(elsewhere: Path, digits: Path) -> None:
    with s3_server() as variables:
        config = bucket(digits, **LOCAL, storage=uri("gone", variables), name="gone")
        config = replace(config, data=replace(config.data, path=str(digits)))
        Folder.of("s3://bucket/gone").write("never", b"")
        port = variables["AWS_ENDPOINT_URL"].rpartition(":")[2]
        killer = kill_after(run_path(config), 2, f"-p\x00{port}\x00")
        with pytest.raises(UserError, match=r"^storage: s3://.* cannot be written \(.*\); checkpoints of"):
            run(config, console=QUIET)
        killer.join()
