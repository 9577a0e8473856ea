"""AsyncClient: the same, awaited; and cancelling."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from storage import ConflictError, FileNotFound, FileStorage
from taskworker import AsyncClient
from tests.services.conftest import CHUNK

USER = "u1"
CONTENT = bytes(range(256)) * 3000


def run(address: str, scenario: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncClient(address) as client:
            await scenario(client)

    asyncio.run(main())


def test_everything_once(address: str, tmp_path: Path) -> None:
    async def scenario(client: AsyncClient) -> None:
        first = await client.push(CONTENT, filename="a", user_id=USER)
        file_id = first.file_id
        assert await client.get(file_id, user_id=USER) == CONTENT
        assert await client.get(file_id, user_id=USER, offset=5, length=5) == CONTENT[5:10]
        assert await client.download(file_id, tmp_path / "out", user_id=USER) == first
        assert (tmp_path / "out").read_bytes() == CONTENT
        second = await client.revise(file_id, CONTENT + b"!", user_id=USER)
        diff = await client.diff(file_id, CONTENT, user_id=USER)
        third = await client.apply(file_id, diff, user_id=USER)
        answer = await client.synchronize(file_id, user_id=USER, have_version_id=second.version_id)
        assert answer.version_id == third.version_id
        result = await client.sync(file_id, tmp_path / "out", user_id=USER, base_version_id=first.version_id)
        assert (result.outcome, result.version) == ("pulled", third)
        assert await client.stat(file_id, user_id=USER) == third
        assert await client.find("a", user_id=USER) == third
        assert await client.history(file_id, user_id=USER) == [third, second, first]
        assert await client.list_files(user_id=USER) == [third]
        assert [version async for version in client.iter_files(user_id=USER)] == [third]
        assert (await client.stats()).files == 1
        assert (await client.scrub()).clean
        assert (await client.repair()).complete
        with pytest.raises(ConflictError):
            await client.apply(file_id, diff, user_id=USER)
        await client.delete(file_id, user_id=USER)
        assert (await client.collect(grace_s=0)).objects_removed
        with pytest.raises(FileNotFound):
            await client.get(file_id, user_id=USER)

    run(address, scenario)


def test_many_at_once(address: str) -> None:
    async def scenario(client: AsyncClient) -> None:
        async def there_and_back(number: int) -> bool:
            data = bytes([number]) * (CHUNK + number)
            version = await client.push(data, filename=f"{number}", user_id=USER)
            return await client.get(version.file_id, user_id=USER) == data

        assert all(await asyncio.gather(*map(there_and_back, range(40))))

    run(address, scenario)


def test_push_of_an_asynchronous_iterable(address: str, store: FileStorage) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(CONTENT), 10_000):
            await asyncio.sleep(0)
            yield CONTENT[at : at + 10_000]

    async def scenario(client: AsyncClient) -> None:
        version = await client.push(pieces(), filename="a", user_id=USER)
        assert store.get(version.file_id, user_id=USER) == CONTENT

    run(address, scenario)


def test_an_error_in_an_asynchronous_iterable(address: str, store: FileStorage) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield CONTENT
        raise OSError("broken pipe dream")

    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(OSError, match="pipe dream"):
            await client.push(pieces(), filename="a", user_id=USER)

    run(address, scenario)
    assert store.find("a", user_id=USER) is None


def test_cancelling_a_push_ends_it_on_the_server(address: str, store: FileStorage) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def waiting() -> Iterator[bytes]:
        yield CONTENT
        begun.set()
        go_on.wait(60)
        yield CONTENT

    async def scenario(client: AsyncClient) -> None:
        push = asyncio.create_task(client.push(waiting(), filename="a", user_id=USER))
        await asyncio.to_thread(begun.wait, 30)
        push.cancel()
        with pytest.raises(asyncio.CancelledError):
            await push
        go_on.set()
        assert await client.find("a", user_id=USER) is None

    run(address, scenario)
    assert store.find("a", user_id=USER) is None


def test_cancelling_a_download_leaves_no_file(address: str, store: FileStorage, tmp_path: Path) -> None:
    version = store.push((bytes([n]) * CHUNK for n in range(200)), filename="a", user_id=USER)
    begun, go_on = threading.Event(), threading.Event()

    def progress(_done: int, _total: int) -> None:
        begun.set()
        go_on.wait(60)

    async def scenario(client: AsyncClient) -> None:
        download = asyncio.create_task(
            client.download(version.file_id, tmp_path / "out", user_id=USER, progress=progress)
        )
        await asyncio.to_thread(begun.wait, 30)
        download.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await download

    run(address, scenario)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
