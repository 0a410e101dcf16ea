"""URIs with secrets are refused wherever one may be given, in a line that does not repeat the secret."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import UserError
from pipelines import cli
from pipelines.cli.cluster import remote_command
from pipelines.config.load import load_config, load_tree
from pipelines.config.schema import SearchTree
from pipelines.storage.paths import Folder, names_secret, secret_in, uri_of, why_unreadable

SECRET = "s3cr3t0f+mine"
WITH_SECRET = [
    f"s3://AKIA:{SECRET}@bucket/runs",
    f"S3://AKIA:{SECRET}@bucket/runs",
    f"s3:/AKIA:{SECRET}@bucket/runs",  # as pathlib folds it
    f"s3://AKIA:{SECRET}/with/slashes@bucket/runs",
    f"s3://bucket/runs?region=eu-west-1&secret_access_key={SECRET}",
    f"abfs://:{SECRET}@account.blob.core.windows.net/container/runs",
    f"abfs://container@account.dfs.core.windows.net/runs?client_secret={SECRET}",
    f"https://host/data?X-Amz-Signature={SECRET}",
    f"https://host/data?sv=2024&sig={SECRET}",
    f"sftp://me:{SECRET}@host:22/runs",
]
WITHOUT = [
    "", "runs", "/a:b@c/d", "~/runs", "my.yaml", "a:b", "nosuch://x", "s3://bucket/runs",
    "s3://bucket/a:b@c/d", "s3://AKIA@bucket/runs", "gs://anonymous@bucket/runs", "hdfs://me@namenode:8020/runs",
    "s3://bucket/runs?region=eu&endpoint_override=127.0.0.1:9000&scheme=http", "sftp://me@host:22/runs",
    "abfs://container@account.dfs.core.windows.net/runs?tenant_id=t&credential_kind=cli", "file:///tmp/x",
    "http://[::1]:5000", "github://owner:repository@branch/data",
]  # fmt: skip


@pytest.mark.parametrize("uri", WITH_SECRET)
def test_a_secret_is_seen_and_not_repeated(uri: str) -> None:
    line = secret_in(uri)
    assert line is not None
    assert SECRET not in line
    assert "leave it out, and use " in line
    assert "\n" not in line
    if uri_of(uri) is not None:
        with pytest.raises(UserError, match=r"^storage: .* is given with a secret"):
            Folder.of(uri)
        assert "is given with a secret" in str(why_unreadable(f"{uri}/train.parquet"))


@pytest.mark.parametrize("uri", WITHOUT)
def test_what_holds_none_passes(uri: str) -> None:
    assert secret_in(uri) is None


PART = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8)


@given(
    scheme=st.sampled_from(["s3", "gs", "abfs", "sftp", "mlflow+https"]), user=PART, secret=PART, path=PART
)
def test_any_password_is_seen(scheme: str, user: str, secret: str, path: str) -> None:
    line = secret_in(f"{scheme}://{user}:{secret}@host/{path}")
    assert line is not None
    assert secret not in line or secret in path


REMEDIES = [("s3", "AWS_PROFILE"), ("gs", "GOOGLE_APPLICATION_CREDENTIALS"), ("sftp", "FSSPEC_SFTP_")]


@pytest.mark.parametrize(("scheme", "remedy"), REMEDIES)
def test_the_remedy_is_the_scheme_s_own(scheme: str, remedy: str) -> None:
    assert remedy in str(secret_in(f"{scheme}://me:{SECRET}@host/x"))


def test_variables_that_hold_secrets() -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "MLFLOW_PASSWORD",
                 "AZURE_STORAGE_KEY", "client_secret", "SECRET"):  # fmt: skip
        assert names_secret(name), name
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS", "OMP_NUM_THREADS",
                 "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "KEYBOARD", "region", "PYTHONPATH"):  # fmt: skip
        assert not names_secret(name), name


URI = WITH_SECRET[0]


@pytest.mark.parametrize(
    "words",
    [
        ("run", "my.yaml", "--storage", URI),
        ("train", "my.yaml", f"--data.path={URI}"),
        ("run", "kept.yaml"),
        ("prune", URI, "--sparsity", "0.5"),
        ("report", URI),
        ("run", "my.yaml", "--tracking.mlflow", f"https://me:{SECRET}@host"),
        ("data", "ingest", "parquet", "--input", URI, "--output", "out"),
        ("submit", "--storage", URI, "--", "run", "my.yaml"),
        ("submit", "--", "prune", URI),
        ("submit", "--", "score", "/runs/x", "--output", URI),
        ("submit", "--", "python", "mine.py", f"--bucket={URI}"),
        ("doctor", "my.yaml", "--storage", URI),
        ("cluster", "manifest", "slurm", "--set", f"storage={URI}"),
        ("cluster", "manifest", "kuberay", "--set", f"command=[run, my.yaml, --data.path, '{URI}']"),
    ],
    ids=lambda words: " ".join(w for w in words if SECRET not in w),
)
def test_refused_in_one_line_before_anything_is_written(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("data: {path: /data}\n")
    Path("kept.yaml").write_text(f"storage: {URI}\n")
    assert cli.main(list(words)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("spikeprune: ")
    assert "is given with a secret" in err
    assert err.count("\n") == 1
    assert SECRET not in out + err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.yaml", "my.yaml"]


def test_the_field_at_fault_is_named(tmp_path: Path) -> None:
    for field in ("storage", "data.path", "tracking.mlflow"):
        with pytest.raises(UserError, match=f"^{field}: "):
            load_config(None, {field: URI})
    with pytest.raises(UserError, match=r"^storage: "):
        load_tree(SearchTree, None, {"storage": URI})
    for words, where in [
        (["prune", URI], "submit"), (["score", "/r", "--output", URI], "--output"),
        (["score", "/r", f"--output={URI}"], "--output"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=f"^{where}: "):
            remote_command(words, tmp_path)
