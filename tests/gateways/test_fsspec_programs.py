"""Programs that open files through fsspec work on both filesystems. Those that are not installed are skipped."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from storage import FileStorage
from taskworker.gateways.fsspec import PoolFileSystem, StoreFileSystem, VersionedFileSystem
from tests.functions.processes import FunctionPool

pytestmark = pytest.mark.filterwarnings("default")  # how they warn of each other is not ours to mend
_POLARS = """
import json, sys
import fsspec, polars
url, options, rows = json.loads(sys.argv[1])
table = polars.DataFrame(rows)
with fsspec.open(url, "wb", **options) as file:
    table.write_parquet(file)
with fsspec.open(url, **options) as file:
    assert polars.read_parquet(file).equals(table)
"""
ROWS = {"number": list(range(100)), "text": [f"text {number}" for number in range(100)]}


@pytest.fixture(params=["store", "pool"])
def place(
    request: pytest.FixtureRequest, user: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, Any], VersionedFileSystem]]:
    """What URLs begin with, the options to give with them, and the filesystem that they mean."""
    if request.param == "pool":
        pool: FunctionPool = request.getfixturevalue("pool")
        options: dict[str, Any] = {"address": pool.address, "user": user}
        yield "taskworker://", options, PoolFileSystem(**options)
        return
    directory = str(tmp_path_factory.mktemp("programs") / "store")
    FileStorage.open(directory).close()
    yield f"taskworker+store://{directory}/", {"user": user}, StoreFileSystem(path=directory, user=user)
    StoreFileSystem.clear_instance_cache()


Place = tuple[str, dict[str, Any], VersionedFileSystem]


def test_pandas(place: Place) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install -e .[gateways-dev]")
    url, options, _ = place
    table = pandas.DataFrame(ROWS)
    table.to_csv(f"{url}t/table.csv", index=False, storage_options=options)
    assert pandas.read_csv(f"{url}t/table.csv", storage_options=options).equals(table)
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -e .[gateways-dev]")
    table.to_parquet(f"{url}t/table.parquet", storage_options=options)
    read = pandas.read_parquet(f"{url}t/table.parquet", columns=["number"], storage_options=options)
    assert list(read["number"]) == ROWS["number"]


def test_pyarrow_datasets(place: Place) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -e .[gateways-dev]")
    datasets = pytest.importorskip("pyarrow.dataset")
    _, _, fs = place
    table = arrow.table({**ROWS, "part": [number % 3 for number in range(100)]})
    datasets.write_dataset(
        table, "set", format="parquet", partitioning=["part"], partitioning_flavor="hive", filesystem=fs
    )
    assert len(fs.ls("set")) == 3
    found = datasets.dataset("set", format="parquet", partitioning="hive", filesystem=fs)
    assert found.count_rows() == 100
    assert found.to_table(filter=datasets.field("part") == 1)["number"].to_pylist() == list(range(1, 100, 3))


def test_polars(place: Place) -> None:
    """In a process of its own, as it warns of every fork of the process that has loaded it: others' tests fork."""
    if importlib.util.find_spec("polars") is None:
        pytest.skip("polars is not installed: pip install -e .[gateways-dev]")
    url, options, _ = place
    told = json.dumps([f"{url}t.parquet", options, ROWS])
    subprocess.run([sys.executable, "-c", _POLARS, told], check=True)


def test_zarr(place: Place) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed: pip install -e .[gateways-dev]")
    storage = pytest.importorskip("zarr.storage")
    url, options, fs = place
    where = storage.FsspecStore.from_url(f"{url}array.zarr", storage_options=options)
    array = zarr.create_array(where, shape=(40, 40), chunks=(10, 10), dtype="i4")
    array[:] = 7
    array[3, 3] = 8
    again = zarr.open_array(where, mode="r")
    assert (int(again[:].sum()), int(again[3, 3])) == (7 * 1600 + 1, 8)
    assert len(fs.find("array.zarr/c")) == 16


def test_dask(place: Place) -> None:
    frames = pytest.importorskip("dask.dataframe", reason="dask is not installed: pip install -e .[gateways-dev]")
    url, options, _ = place
    pandas = pytest.importorskip("pandas")
    frame = frames.from_pandas(pandas.DataFrame(ROWS), npartitions=3)
    frame.to_parquet(f"{url}dasked", storage_options=options)
    read = frames.read_parquet(f"{url}dasked", storage_options=options)
    assert int(read["number"].sum().compute(scheduler="threads")) == sum(range(100))


def test_duckdb(place: Place) -> None:
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed: pip install -e .[gateways-dev]")
    _, _, fs = place
    with duckdb.connect() as connection:
        connection.register_filesystem(fs)
        name = f"{fs.protocol}://ducks"
        connection.execute(f"COPY (SELECT range AS n FROM range(1000)) TO '{name}/a.parquet'")
        connection.execute(f"COPY (SELECT range AS n FROM range(1000)) TO '{name}/b.parquet'")
        assert connection.sql(f"SELECT sum(n) FROM read_parquet('{name}/*.parquet')").fetchall() == [(999_000,)]


def test_universal_pathlib(place: Place) -> None:
    upath = pytest.importorskip("upath", reason="universal_pathlib is not installed: pip install -e .[gateways-dev]")
    _, _, fs = place
    # It takes a protocol with a plus for its first half, so that it has to be named.
    path = upath.UPath("d", protocol=fs.protocol, **fs.storage_options)
    (path / "inner" / "f.txt").write_text("text")
    assert (path / "inner" / "f.txt").read_text() == "text"
    assert [one.name for one in path.iterdir()] == ["inner"]
    assert [one.name for one in path.glob("**/*.txt")] == ["f.txt"]
    assert (path / "inner").is_dir()
    assert (path / "inner" / "f.txt").stat().st_size == 4
    (path / "inner" / "f.txt").unlink()
    assert not (path / "inner").exists()
