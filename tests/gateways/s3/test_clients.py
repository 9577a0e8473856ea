"""Programs that speak S3, as they are, use the gateway. Those that are missing are skipped.

The table in ``docs/how-to/s3.md`` says what each of them does here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskworker.gateways.http_server import HttpServer
from tests.gateways.s3.conftest import KEY, SECRET

_LARGE = 20 * 1024 * 1024  # more than any of them sends in one request


def program(name: str) -> str:
    """A program beside this Python, or on the path."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{name} is not installed: pip install '.[gateways-dev]', or apt install {name}")
    return found


def run(*command: str | Path, env: Mapping[str, str] | None = None, given: bytes | None = None) -> str:
    """Run a program to its end, and return what it printed. Of Amazon's settings, it has those in ``env`` only."""
    around = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [str(one) for one in command],
        env={**around, **(env or {})},
        input=given,
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout.decode()}{done.stderr.decode()}"
    return done.stdout.decode()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with files of many kinds."""
    top = tmp_path / "tree"
    (top / "sub dir").mkdir(parents=True)
    (top / "small").write_bytes(b"small")
    (top / "empty").write_bytes(b"")
    (top / "sub dir" / "ü+&").write_bytes(b"odd name")
    (top / "large").write_bytes(os.urandom(_LARGE))
    return top


def same(one: Path, other: Path) -> None:
    def content(top: Path) -> dict[str, bytes]:
        return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}

    assert content(one) == content(other)


def test_aws_cli(url: str, bucket: str, tree: Path, tmp_path: Path) -> None:
    aws = program("aws")
    env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    env |= {"AWS_ENDPOINT_URL": url, "AWS_CONFIG_FILE": "/dev/null"}
    run(aws, "s3", "sync", tree, f"s3://{bucket}/aws", env=env)
    assert "small" in run(aws, "s3", "ls", f"s3://{bucket}/aws/", env=env)
    run(aws, "s3", "cp", f"s3://{bucket}/aws/large", f"s3://{bucket}/aws-copy", env=env)
    run(aws, "s3", "sync", f"s3://{bucket}/aws", tmp_path / "back", env=env)
    same(tree, tmp_path / "back")
    assert run(aws, "s3", "cp", f"s3://{bucket}/aws/small", "-", env=env) == "small"
    run(aws, "s3", "mv", f"s3://{bucket}/aws/small", f"s3://{bucket}/aws/moved", env=env)
    run(aws, "s3api", "head-object", "--bucket", bucket, "--key", "aws/moved", env=env)
    with urllib.request.urlopen(run(aws, "s3", "presign", f"s3://{bucket}/aws/moved", env=env).strip()) as got:
        assert got.read() == b"small"
    run(aws, "s3", "rm", "--recursive", f"s3://{bucket}/aws", env=env)
    left = run(aws, "s3api", "list-objects-v2", "--bucket", bucket, "--prefix", "aws/", "--query", "Contents", env=env)
    assert left == "null\n"


def test_aws_cli_sets_rules_locks_and_policies(url: str, s3: Any) -> None:
    bucket = f"records-{uuid.uuid4().hex[:12]}"
    env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    env |= {"AWS_ENDPOINT_URL": url, "AWS_CONFIG_FILE": "/dev/null"}

    def aws(call: str, *more: str) -> None:
        run(program("aws"), "s3api", call, "--bucket", bucket, *more, env=env)

    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    rules = '{"Rules": [{"ID": "r", "Status": "Enabled", "Filter": {"Prefix": "a"}, "Expiration": {"Days": 3}}]}'
    aws("put-bucket-lifecycle-configuration", "--lifecycle-configuration", rules)
    policy = (
        '{"Statement": {"Effect": "Allow", "Principal": {"AWS": "ben"}, "Action": ["s3:GetObject", '
        f'"s3:GetObjectVersion"], "Resource": "arn:aws:s3:::{bucket}/k"}}}}'
    )
    aws("put-bucket-policy", "--policy", policy)
    until = datetime.now(UTC) + timedelta(hours=1)
    put = s3.put_object(Bucket=bucket, Key="a", Body=b"", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=until)
    assert 'rule-id="r"' in put["Expiration"]
    assert s3.get_bucket_policy(Bucket=bucket)["Policy"] == policy
    aws("delete-object", "--key", "a", "--version-id", put["VersionId"], "--bypass-governance-retention")
    s3.delete_bucket(Bucket=bucket)


def test_s3cmd(gateway: HttpServer, bucket: str, tree: Path, tmp_path: Path) -> None:
    options = [
        *("--access_key", KEY, "--secret_key", SECRET, "--no-ssl", "--host", gateway.address),
        *("--host-bucket", gateway.address, "--config", "/dev/null", "--multipart-chunk-size-mb", "5"),
    ]
    s3cmd = [program("s3cmd"), *options]
    run(*s3cmd, "sync", f"{tree}/", f"s3://{bucket}/s3cmd/")
    assert "small" in run(*s3cmd, "ls", f"s3://{bucket}/s3cmd/")
    assert bucket in run(*s3cmd, "ls")
    (tmp_path / "back").mkdir()
    run(*s3cmd, "sync", f"s3://{bucket}/s3cmd/", f"{tmp_path / 'back'}/")
    same(tree, tmp_path / "back")
    run(*s3cmd, "cp", f"s3://{bucket}/s3cmd/small", f"s3://{bucket}/s3cmd/copy")
    run(*s3cmd, "mv", f"s3://{bucket}/s3cmd/copy", f"s3://{bucket}/s3cmd/moved")
    run(*s3cmd, "info", f"s3://{bucket}/s3cmd/moved")
    run(*s3cmd, "del", "--recursive", "--force", f"s3://{bucket}/s3cmd/")
    assert run(*s3cmd, "ls", f"s3://{bucket}/s3cmd/") == ""


def test_rclone(url: str, bucket: str, tree: Path, tmp_path: Path) -> None:
    rclone = program("rclone")
    env = {"RCLONE_CONFIG": "/dev/null", "RCLONE_CONFIG_T_TYPE": "s3", "RCLONE_CONFIG_T_PROVIDER": "Other"}
    env |= {"RCLONE_CONFIG_T_ACCESS_KEY_ID": KEY, "RCLONE_CONFIG_T_SECRET_ACCESS_KEY": SECRET}
    env |= {"RCLONE_CONFIG_T_ENDPOINT": url, "RCLONE_CONFIG_T_REGION": "us-east-1", "RCLONE_S3_UPLOAD_CUTOFF": "8M"}
    there = f"T:{bucket}/rclone"
    run(rclone, "sync", tree, there, env=env)
    run(rclone, "check", tree, there, env=env)
    assert "small" in run(rclone, "lsf", there, env=env)
    assert run(rclone, "cat", f"{there}/small", env=env) == "small"
    run(rclone, "copy", there, tmp_path / "back", env=env)
    same(tree, tmp_path / "back")
    run(rclone, "moveto", f"{there}/small", f"{there}/moved", env=env)
    run(rclone, "rcat", f"{there}/piped", env=env, given=b"x" * 1000)
    run(rclone, "purge", there, env=env)
    assert run(rclone, "lsf", f"T:{bucket}", "--include", "rclone/**", env=env) == ""


def test_restic(url: str, bucket: str, tree: Path, tmp_path: Path) -> None:
    restic = program("restic")
    env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "RESTIC_PASSWORD": "x"}
    env |= {"RESTIC_REPOSITORY": f"s3:{url}/{bucket}/restic", "RESTIC_CACHE_DIR": str(tmp_path / "cache")}
    run(restic, "init", env=env)
    run(restic, "backup", tree, env=env)
    (tree / "small").write_bytes(b"changed")
    run(restic, "backup", tree, env=env)
    run(restic, "check", "--read-data", env=env)
    run(restic, "restore", "latest", "--target", tmp_path / "back", env=env)
    same(tree, tmp_path / "back" / tree.relative_to("/"))
    run(restic, "forget", "--keep-last", "1", "--prune", env=env)
    run(restic, "check", env=env)


def test_pyarrow(gateway: HttpServer, bucket: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    fs = pytest.importorskip("pyarrow.fs")
    parquet = pytest.importorskip("pyarrow.parquet")
    files: Any = fs.S3FileSystem(
        access_key=KEY, secret_key=SECRET, endpoint_override=gateway.address, scheme="http", region="us-east-1"
    )
    table = arrow.table({"x": list(range(1000)), "y": ["a"] * 1000})
    parquet.write_table(table, f"{bucket}/arrow/table.parquet", filesystem=files)
    assert parquet.read_table(f"{bucket}/arrow/table.parquet", filesystem=files) == table
    assert [one.path for one in files.get_file_info(fs.FileSelector(f"{bucket}/arrow"))] == [
        f"{bucket}/arrow/table.parquet"
    ]
    with files.open_output_stream(f"{bucket}/arrow/large") as stream:
        for _ in range(12):
            stream.write(bytes(1024 * 1024))
    assert files.get_file_info(f"{bucket}/arrow/large").size == 12 * 1024 * 1024
    files.copy_file(f"{bucket}/arrow/large", f"{bucket}/arrow/copy")
    files.delete_file(f"{bucket}/arrow/copy")
    files.delete_dir(f"{bucket}/arrow")


def test_s3fs(url: str, bucket: str) -> None:
    s3fs = pytest.importorskip("s3fs")
    fs: Any = s3fs.S3FileSystem(
        key=KEY,
        secret=SECRET,
        client_kwargs={"endpoint_url": url, "region_name": "us-east-1"},
        skip_instance_cache=True,
    )
    fs.pipe(f"{bucket}/s3fs/a", b"abc")
    assert fs.cat(f"{bucket}/s3fs/a") == b"abc"
    with fs.open(f"{bucket}/s3fs/large", "wb") as file:
        file.write(bytes(_LARGE // 2))
    assert fs.info(f"{bucket}/s3fs/large")["size"] == _LARGE // 2
    assert sorted(fs.ls(f"{bucket}/s3fs")) == [f"{bucket}/s3fs/a", f"{bucket}/s3fs/large"]
    fs.copy(f"{bucket}/s3fs/a", f"{bucket}/s3fs/b")
    fs.rm(f"{bucket}/s3fs", recursive=True)
    assert not fs.exists(f"{bucket}/s3fs/a")


def test_duckdb(gateway: HttpServer, s3: Any, bucket: str) -> None:
    duckdb = pytest.importorskip("duckdb")
    s3.put_object(Bucket=bucket, Key="duck/a.csv", Body=b"x,y\n1,2\n3,4\n")
    database = duckdb.connect()
    try:
        database.execute("LOAD httpfs")
    except duckdb.Error as error:
        pytest.skip(f"DuckDB has no httpfs here: {error}")
    database.execute(
        f"CREATE SECRET (TYPE s3, KEY_ID '{KEY}', SECRET '{SECRET}', ENDPOINT '{gateway.address}', URL_STYLE 'path', "
        "USE_SSL false, REGION 'us-east-1')"
    )
    assert database.execute(f"SELECT sum(y) FROM 's3://{bucket}/duck/*.csv'").fetchall() == [(6,)]
    database.execute(f"COPY (SELECT 1 AS z) TO 's3://{bucket}/duck/out.parquet'")
    assert database.execute(f"SELECT z FROM 's3://{bucket}/duck/out.parquet'").fetchall() == [(1,)]


def test_s5cmd(url: str, bucket: str, tree: Path, tmp_path: Path) -> None:
    s5cmd = [program("s5cmd"), "--endpoint-url", url]
    env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    run(*s5cmd, "cp", f"{tree}/", f"s3://{bucket}/s5cmd/", env=env)
    assert "small" in run(*s5cmd, "ls", f"s3://{bucket}/s5cmd/", env=env)
    assert run(*s5cmd, "cat", f"s3://{bucket}/s5cmd/small", env=env) == "small"
    run(*s5cmd, "cp", f"s3://{bucket}/s5cmd/*", f"{tmp_path / 'back'}/", env=env)
    same(tree, tmp_path / "back")
    run(*s5cmd, "mv", f"s3://{bucket}/s5cmd/small", f"s3://{bucket}/s5cmd/moved", env=env)
    run(*s5cmd, "rm", f"s3://{bucket}/s5cmd/*", env=env)
    assert " 0 objects" in run(*s5cmd, "du", f"s3://{bucket}/s5cmd/*", env=env)


def _object_store_options(url: str) -> dict[str, str]:
    """Settings of the Rust crate ``object_store``, which many programs use."""
    return {
        "aws_endpoint": url,
        "aws_access_key_id": KEY,
        "aws_secret_access_key": SECRET,
        "aws_region": "us-east-1",
        "aws_allow_http": "true",
    }


def test_delta_lake(url: str, bucket: str) -> None:
    delta, arrow = pytest.importorskip("deltalake"), pytest.importorskip("pyarrow")
    table, where, options = arrow.table({"x": list(range(1000))}), f"s3://{bucket}/delta", _object_store_options(url)
    delta.write_deltalake(where, table, storage_options=options)
    with ThreadPoolExecutor(4) as writers:  # each commit is a put that must find nothing there
        writing = [
            writers.submit(delta.write_deltalake, where, table, mode="append", storage_options=options)
            for _ in range(4)
        ]
    for one in writing:
        one.result()
    found = delta.DeltaTable(where, storage_options=options)
    found.delete("x < 500")
    assert (found.to_pyarrow_table().num_rows, found.version()) == (2500, 5)
    assert delta.DeltaTable(where, version=4, storage_options=options).to_pyarrow_table().num_rows == 5000
    found.optimize.compact()
    found.vacuum(0, enforce_retention_duration=False, dry_run=False)
    found.create_checkpoint()
    assert delta.DeltaTable(where, storage_options=options).to_pyarrow_table().num_rows == 2500


_LANCE = """
import json, sys
import lance, pyarrow
where, options = json.loads(sys.argv[1])
table = pyarrow.table({"x": list(range(1000))})
lance.write_dataset(table, where, storage_options=options)
lance.write_dataset(table, where, mode="append", storage_options=options)
found = lance.dataset(where, storage_options=options)
found.delete("x < 500")
assert found.count_rows() == 1000
assert lance.dataset(where, version=1, storage_options=options).count_rows() == 1000
"""


def test_lance(url: str, bucket: str) -> None:
    """In a process of its own, as it warns of every fork of the process that has loaded it: others' tests fork."""
    if any(importlib.util.find_spec(name) is None for name in ("lance", "pyarrow")):
        pytest.skip("lance is not installed: pip install -e .[gateways-dev]")
    told = json.dumps([f"s3://{bucket}/l.lance", _object_store_options(url)])
    subprocess.run([sys.executable, "-c", _LANCE, told], check=True)


def test_s3fs_with_fuse(url: str, bucket: str, tree: Path, tmp_path: Path) -> None:
    s3fs = program("s3fs")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this process may not use /dev/fuse")
    keys, mounted = tmp_path / "keys", tmp_path / "mounted"
    keys.touch(0o600)
    keys.write_text(f"{KEY}:{SECRET}\n")
    mounted.mkdir()
    run(s3fs, bucket, mounted, "-o", f"passwd_file={keys},url={url},use_path_request_style")
    try:
        shutil.copytree(tree, mounted / "tree")
        same(tree, mounted / "tree")
        (mounted / "tree" / "small").rename(mounted / "moved")
        with (mounted / "moved").open("ab") as file:
            file.write(b" and more")
        assert (mounted / "moved").read_bytes() == b"small and more"
        (mounted / "moved").unlink()
        shutil.rmtree(mounted / "tree")
        assert not {"tree", "moved"} & {path.name for path in mounted.iterdir()}
    finally:
        run("fusermount", "-u", mounted)
