"""Calls of an S3 client in random order, over a pool that is collected and killed, held against a model of buckets."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from storage.limits import KIB, MIB
from taskworker import Client
from taskworker.gateways.http_server import HttpServer
from taskworker.gateways.s3.accounts import FileAccounts
from taskworker.gateways.s3.app import S3App
from tests.cluster.campaign.ledger import Wrong
from tests.cluster.campaign.run import Run
from tests.cluster.campaign.s3_objects import Bucket, Entry
from tests.cluster.processes import Cluster
from tests.gateways.s3.conftest import connect, keys_file

_STEPS = 40  # of a round
_KEYS = ("a", "a/", "b", "d/x", "d/y", "d/e/z", "d//q", "中文", "new\nline", "sp ace+plus%25", "~", "x" * 300)
_SIZES = (0, 1, 100, 64 * KIB, 64 * KIB + 1, MIB - 1, MIB, MIB + 1, 2 * MIB + 5)
_PART_BYTES_MIN = 5 * MIB
_BUCKETS = {"plain": "", "versioned": "Enabled"}


class _RandomCalls:
    """Does one random call after another.

    Attributes:
        calls: what was done, by kind.
        errors: what must not happen.
    """

    def __init__(self, s3: Any, cluster: Cluster, rng: Random) -> None:
        self._s3 = s3
        self._cluster = cluster
        self._rng = rng
        self.calls: Counter[str] = Counter()
        self.errors: list[str] = []
        self._buckets = {name: Bucket() for name in _BUCKETS}
        for name, versioning in _BUCKETS.items():
            s3.create_bucket(Bucket=name)
            if versioning:
                self._set_versioning(name, versioning)
        self._kinds: dict[Callable[[], None], float] = {
            self._put: 10, self._put_on_condition: 4, self._get: 8, self._delete: 5, self._delete_version: 5,
            self._delete_many: 3, self._copy: 6, self._multipart: 4, self._list: 4, self._change_versioning: 1,
            self._collect: 2, self._kill_pool: 0.7, self._kill_worker: 1,
        }  # fmt: skip

    def step(self) -> None:
        """One call."""
        kind = self._rng.choices(list(self._kinds), weights=list(self._kinds.values()))[0]
        with self._calling(kind.__name__.strip("_").replace("_", " ")):
            kind()

    @contextmanager
    def _calling(self, kind: str) -> Iterator[None]:
        try:
            yield
            self.calls[kind] += 1
        except (ClientError, BotoCoreError, Wrong) as error:
            self.errors.append(f"{kind}: {type(error).__name__}: {error}")

    def _bucket(self) -> tuple[str, Bucket]:
        name = self._rng.choice(sorted(self._buckets))
        return name, self._buckets[name]

    def _version(self) -> tuple[str, str, Entry] | None:
        """A bucket, a key in it, and one of its versions; None if it has none."""
        name, bucket = self._bucket()
        found = [(key, entry) for key, entries in sorted(bucket.keys.items()) for entry in entries]
        return (name, *self._rng.choice(found)) if found else None

    def _content(self, key: str) -> bytes:
        size = 0 if key.endswith("/") else self._rng.choice(_SIZES)
        return bytes(size) if self._rng.random() < 0.2 else self._rng.randbytes(size)

    def _of_version(self, name: str, entry: Entry) -> dict[str, str]:
        return {"VersionId": entry.version_id} if self._buckets[name].versioning else {}

    # -- calls -----------------------------------------------------------------------------------

    def _put(self) -> None:
        (name, bucket), key = self._bucket(), self._rng.choice(_KEYS)
        content, metadata = self._content(key), {"number": str(self._rng.randrange(9))}
        answer = self._s3.put_object(Bucket=name, Key=key, Body=content, Metadata=metadata)
        bucket.put(key, answer.get("VersionId"), content, metadata.items())

    def _put_on_condition(self) -> None:
        (name, bucket), key = self._bucket(), self._rng.choice(_KEYS)
        content, head = self._content(key), bucket.head(key)
        condition = {"IfNoneMatch": "*"}
        if self._rng.random() < 0.5 and head is not None:
            condition = {"IfMatch": self._s3.head_object(Bucket=name, Key=key)["ETag"]}
        holds = "IfMatch" in condition or head is None
        try:
            answer = self._s3.put_object(Bucket=name, Key=key, Body=content, **condition)
        except ClientError as error:
            if holds or error.response["Error"]["Code"] != "PreconditionFailed":
                raise
            return
        if not holds:
            raise Wrong(f"{key[:20]!r} was stored, though {condition} does not hold")
        bucket.put(key, answer.get("VersionId"), content, ())

    def _get(self) -> None:
        found = self._version()
        if found is None:
            return
        name, key, entry = found
        if entry.content is not None:
            self._compare(name, key, entry)

    def _compare(self, name: str, key: str, entry: Entry) -> None:
        answer = self._s3.get_object(Bucket=name, Key=key, **self._of_version(name, entry))
        if answer["Body"].read() != entry.content:
            raise Wrong(f"other bytes of {key[:20]!r}, version {entry.version_id}")
        if answer["Metadata"] != dict(entry.metadata):
            raise Wrong(f"other metadata of {key[:20]!r}: {answer['Metadata']}")

    def _delete(self) -> None:
        (name, bucket), key = self._bucket(), self._rng.choice(_KEYS)
        bucket.delete(key, self._s3.delete_object(Bucket=name, Key=key).get("VersionId"))

    def _delete_version(self) -> None:
        found = self._version()
        if found is None or not self._buckets[found[0]].versioning:
            return
        name, key, entry = found
        self._s3.delete_object(Bucket=name, Key=key, VersionId=entry.version_id)
        self._buckets[name].remove(key, entry)

    def _delete_many(self) -> None:
        name, bucket = self._bucket()
        keys = self._rng.sample(_KEYS, self._rng.randrange(1, 6))
        answer = self._s3.delete_objects(Bucket=name, Delete={"Objects": [{"Key": key} for key in keys]})
        for deleted in answer.get("Deleted", []):
            bucket.delete(deleted["Key"], deleted.get("DeleteMarkerVersionId"))
            keys.remove(deleted["Key"])
        if keys:
            raise Wrong(f"not deleted: {keys}, {answer.get('Errors')}")

    def _copy(self) -> None:
        found = self._version()
        if found is None or found[2].content is None:
            return
        (name, key, entry), (to_name, to), to_key = found, self._bucket(), self._rng.choice(_KEYS)
        source = {"Bucket": name, "Key": key, **self._of_version(name, entry)}
        more: dict[str, Any] = {}
        metadata = entry.metadata
        if (name, key) == (to_name, to_key):  # which S3 refuses if nothing is changed
            metadata = (("copied", "yes"),)
            more = {"MetadataDirective": "REPLACE", "Metadata": dict(metadata)}
        answer = self._s3.copy_object(Bucket=to_name, Key=to_key, CopySource=source, **more)
        to.put(to_key, answer.get("VersionId"), entry.content, metadata)

    def _multipart(self) -> None:
        """An upload in parts that arrive in any order, some twice; the pool may be collected or killed meanwhile."""
        (name, bucket), key = self._bucket(), self._rng.choice(_KEYS)
        where = {"Bucket": name, "Key": key}
        where["UploadId"] = self._s3.create_multipart_upload(**where)["UploadId"]
        count = self._rng.randrange(1, 4)
        numbers = [*range(1, count + 1), self._rng.randrange(1, count + 1)]
        self._rng.shuffle(numbers)
        parts: dict[int, tuple[str, bytes]] = {}
        for number in numbers:
            size = _PART_BYTES_MIN + self._rng.choice((0, 1, 777)) if number < count else self._rng.choice(_SIZES[1:])
            part = self._rng.randbytes(size)
            parts[number] = self._s3.upload_part(**where, PartNumber=number, Body=part)["ETag"], part
        chance = self._rng.random()
        if chance < 0.2:
            self._s3.abort_multipart_upload(**where)
            return
        if chance < 0.4:
            self._collect()
        elif chance < 0.5:
            self._kill_pool()
        named = [{"PartNumber": number, "ETag": tag} for number, (tag, _) in sorted(parts.items())]
        answer = self._s3.complete_multipart_upload(**where, MultipartUpload={"Parts": named})
        bucket.put(key, answer.get("VersionId"), b"".join(part for _, (_, part) in sorted(parts.items())), ())

    def _list(self) -> None:
        name, bucket = self._bucket()
        delimiter, prefix = self._rng.choice(("", "/")), self._rng.choice(("", "d/", "d"))
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=name,
            Delimiter=delimiter,
            Prefix=prefix,
            PaginationConfig={"PageSize": self._rng.choice((1, 2, 1000))},
        )
        objects: list[tuple[str, int]] = []
        prefixes: list[str] = []
        for page in pages:
            objects += [(each["Key"], each["Size"]) for each in page.get("Contents", [])]
            prefixes += [each["Prefix"] for each in page.get("CommonPrefixes", [])]
        right = bucket.listing(prefix, delimiter)
        if (objects, prefixes) != right:
            raise Wrong(f"{name} with {prefix!r}, {delimiter!r}: {objects}, {prefixes}, where {right} is right")

    def _change_versioning(self) -> None:
        self._set_versioning("versioned", self._rng.choice(("Enabled", "Suspended")))

    def _set_versioning(self, name: str, versioning: str) -> None:
        self._s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": versioning})
        self._buckets[name].versioning = versioning

    # -- what befalls the pool -------------------------------------------------------------------

    def _collect(self) -> None:
        self._await_whole()
        self._cluster.client.collect(grace_s=0)

    def _kill_pool(self) -> None:
        self._cluster.pool_process.kill()
        self._cluster.restart_pool()
        self._await_whole()

    def _kill_worker(self) -> None:
        name = self._rng.choice(sorted(self._cluster.workers))
        self._cluster.kill(name)
        self._cluster.start_worker(name)

    def _await_whole(self) -> None:
        self._cluster.await_status(lambda status: all(worker.state == "alive" for worker in status.workers))
        self._cluster.await_survivable(1)

    # -- looks at everything ---------------------------------------------------------------------

    def _listed(self, name: str) -> list[dict[str, Any]]:
        """All versions and delete markers of a bucket."""
        pages = self._s3.get_paginator("list_object_versions").paginate(
            Bucket=name, PaginationConfig={"PageSize": self._rng.choice((3, 1000))}
        )
        return [each for page in pages for kind in ("Versions", "DeleteMarkers") for each in page.get(kind, [])]

    def verify(self) -> None:
        """List and read every version of every object, and look at every shard."""
        self._await_whole()
        for name, bucket in self._buckets.items():
            with self._calling(f"look at {name}"):
                listed = self._listed(name)
                found = {(each["Key"], each["VersionId"]) for each in listed}
                right = {(key, entry.version_id) for key, entries in bucket.keys.items() for entry in entries}
                if found != right:
                    raise Wrong(f"too many are {found - right}, missing are {right - found}")
                newest = {(each["Key"], each["VersionId"]) for each in listed if each["IsLatest"]}
                if newest != {(key, entries[-1].version_id) for key, entries in bucket.keys.items()}:
                    raise Wrong(f"as newest are shown {newest}")
                for key, entries in sorted(bucket.keys.items()):
                    for entry in entries:
                        if entry.content is not None:
                            self._compare(name, key, entry)
        scrubbed = self._cluster.client.scrub()
        if not scrubbed.clean:
            self.errors.append(f"scrub: {scrubbed}")

    def delete_all(self) -> None:
        """Delete all versions and the buckets."""
        with self._calling("delete all"):
            for name, bucket in self._buckets.items():
                for each in self._listed(name):
                    version = {"VersionId": each["VersionId"]} if bucket.versioning else {}
                    self._s3.delete_object(Bucket=name, Key=each["Key"], **version)
                self._s3.delete_bucket(Bucket=name)


def s3_combinations(run: Run) -> None:
    """Take N rounds of random calls, with a look at everything after each."""
    os.environ["XDG_CONFIG_HOME"] = str(run.directory / "config")
    options = ("--k", "1", "--n", "2", "--encryption")
    with (
        Cluster(run.directory, workers=3, grace_s=5.0, options=options) as cluster,
        Client(cluster.address) as client,
    ):
        server = HttpServer(S3App(FileAccounts(keys_file(run.directory), client), domain="s3.test"), "127.0.0.1:0")
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            s3 = connect(f"http://{server.address}", retries={"max_attempts": 4}, read_timeout=120)
            calls = _RandomCalls(s3, cluster, run.rng)
            for number in range(1, run.rounds + 1):
                for _ in range(_STEPS):
                    calls.step()
                calls.verify()
                run.verdicts.progress(f"round {number}: {calls.calls.total():,} calls, {len(calls.errors)} errors")
            calls.delete_all()
        finally:
            server.stop()
            thread.join()
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(calls.calls.items()))
    run.verdicts.note(f"{run.rounds} rounds of {_STEPS} steps: {kinds}")
    run.verdicts.errors("answers, objects, versions or shards other than the model has, and errors", calls.errors)
