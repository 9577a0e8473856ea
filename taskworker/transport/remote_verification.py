"""The second half of the verification of a worker's volume: what happens to the corrupt shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from storage.batching import batched
from storage.errors import InvalidArgument
from storage.keys import ShardKey
from storage.shards import VolumeFailed
from storage.shards.port import Verdict
from taskworker.transport.frames import KEYS_MAX, Call, join_keys, parse_keys
from taskworker.transport.shard_calls import Lane, ShardCalls

ResultT = TypeVar("ResultT")


class RemoteVerification:
    """See :class:`storage.shards.port.Verification`.

    Args:
        calls: makes the calls to the worker.
        token: the worker's token for this verification.
    """

    def __init__(self, calls: ShardCalls, token: bytes) -> None:
        self._calls = calls
        self._token = token

    def judge(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """See :meth:`storage.shards.port.Verification.judge`."""
        verdicts: list[Verdict] = []
        for batch in batched(keys, KEYS_MAX):
            verdicts += self._calls.verdicts(self._ask(partial(self._judge, batch)), batch)
        return verdicts

    def _judge(self, keys: Sequence[ShardKey]) -> bytes:
        return self._calls.call(Call.JUDGE, self._token, join_keys(keys), lane=Lane.LONG)

    def quarantine_rest(self) -> Iterator[ShardKey]:
        """See :meth:`storage.shards.port.Verification.quarantine_rest`."""
        messages = self._calls.stream(Call.REST, self._token)
        while (message := self._ask(lambda: next(messages, None))) is not None:
            yield from self._calls.checked(lambda message=message: parse_keys(message))  # type: ignore[misc]

    def _ask(self, ask: Callable[[], ResultT]) -> ResultT:
        try:
            return ask()
        except InvalidArgument as error:
            raise VolumeFailed(f"worker {self._calls.name} restarted during a verification ({error})") from None
