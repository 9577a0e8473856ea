"""Functions: calling, deploying and watching them; and names."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskworker.client.base import ClientBase
from taskworker.client.checked import arguments_checked, check_texts, texts_of
from taskworker.client.connection import IncomingMessages
from taskworker.errors import FunctionFailed
from taskworker.protos import functions_pb2, taskworker_pb2

if TYPE_CHECKING:
    from taskworker.client.deploying import Deployment
    from taskworker.client.functions import FunctionStatus, LogLine


class FunctionCalls(ClientBase):
    """What a client does with functions, and with names."""

    @arguments_checked
    def call(
        self,
        function: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        user_id: str,
        timeout_s: float | None = None,
    ) -> Any:
        """Call a function by its name; what it returns, as JSON has it.

        Args:
            function: its name.
            args: values that JSON can hold.
            kwargs: likewise, by parameter.
            user_id: on whose behalf it runs.
            timeout_s: after that many seconds the call is ended wherever it runs.

        Raises:
            FunctionNotFound: there is no such function.
            FunctionFailed: it raised an exception; the text has its type, its message and its own frames.
            FunctionLimitExceeded: the call used more than it may.
            FunctionBusy: as many calls run and wait as are allowed; try again later.
            DeadlineExceeded: the time is up.
            InvalidArgument: an argument does not fit its parameter.
            StorageError: one of the other errors of ``taskworker.errors``.
        """
        texts, named = texts_of(args, kwargs)
        return value_of(self.call_texts(function, texts, named, user_id=user_id, timeout_s=timeout_s))

    @arguments_checked
    def call_texts(
        self,
        function: str,
        args: Sequence[str],
        kwargs: Mapping[str, str],
        *,
        user_id: str,
        timeout_s: float | None = None,
    ) -> str:
        """As :meth:`call`, with arguments as texts (JSON values, or bare words), and the result as JSON."""
        check_texts(args, kwargs)
        request = taskworker_pb2.FunctionCallRequest(function_name=function, args=args, kwargs=kwargs, user_id=user_id)
        return self._channel.unary(self._channel.rpc.CallFunction, request, self._deadline(timeout_s)).result

    @arguments_checked
    def stream(
        self,
        function: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        user_id: str,
        timeout_s: float | None = None,
    ) -> Generator[Any, None, None]:
        """Call a function that is a generator: each item as it comes. Of any other function, its result as one item.

        Leaving the iteration early ends the call.

        Args:
            function: its name.
            args: values that JSON can hold.
            kwargs: likewise, by parameter.
            user_id: on whose behalf it runs.
            timeout_s: after that many seconds the call is ended wherever it runs.

        Raises:
            CallUncertain: its worker was lost after it gave some items; and what :meth:`call` raises.
        """
        texts, named = texts_of(args, kwargs)
        return _values_of(self.stream_texts(function, texts, named, user_id=user_id, timeout_s=timeout_s))

    @arguments_checked
    def stream_texts(
        self,
        function: str,
        args: Sequence[str],
        kwargs: Mapping[str, str],
        *,
        user_id: str,
        timeout_s: float | None = None,
    ) -> Generator[str, None, None]:
        """As :meth:`stream`, with arguments as texts (JSON values, or bare words), and items as JSON."""
        check_texts(args, kwargs)
        request = functions_pb2.StreamFunctionRequest(function_name=function, args=args, kwargs=kwargs, user_id=user_id)
        items = self._channel.receive(self._channel.streams.StreamFunction, request, self._deadline(timeout_s))
        return _items_of(items)

    @arguments_checked
    def deploy(
        self,
        /,
        name: str,
        entry: str,
        *,
        user_id: str,
        directory: str | os.PathLike[str] = ".",
        include: Sequence[str] = (),
        requirements: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Deployment:
        """Put a function into the pool as the newest version of ``name``, as ``taskworker deploy`` does.

        A worker imports it first: what fails then does not go live.

        Args:
            name: what callers call it.
            entry: ``module:function``.
            user_id: who deploys it.
            directory: where the module is; what it imports from there travels along.
            include: further files of that directory: names, directories, or patterns.
            requirements: a requirements file.
            dry_run: only say what would travel, and have it imported.
            timeout_s: how long to wait for the pool to take the bundle; not for packages.
            options: as of ``TaskWorker.function``, and ``needs``: labels that a worker must have to run it.

        Raises:
            InvalidArgument: it cannot be packed, or an option is unknown or out of bounds.
            FunctionBroken: it cannot be imported, or has no such entry.
            FunctionsUnavailable: no worker could import it, and there is an earlier version.
        """
        from taskworker.calls.spec import spec_from_options
        from taskworker.client.deploying import Source, deploy
        from taskworker.client.functions import FunctionClient

        spec = spec_from_options(name, entry, options)
        source = Source(Path(directory), include, None if requirements is None else Path(requirements))

        def remaining_s() -> float | None:
            return self._deadline(timeout_s).remaining_s()

        with FunctionClient(self.address) as client:
            return deploy(client, spec, source, user_id=user_id, dry_run=dry_run, remaining_s=remaining_s)

    @arguments_checked
    def functions(self, *, timeout_s: float | None = None) -> list[FunctionStatus]:
        """The pool's functions and how their calls do, by name, as ``taskworker functions`` lists them."""
        from taskworker.client.functions import FunctionClient

        with FunctionClient(self.address) as client:
            return client.functions(timeout_s=self._deadline(timeout_s).remaining_s())

    @arguments_checked
    def logs(
        self, function: str = "", *, call_id: str = "", since_ms: int = 0, tail: int | None = None, follow: bool = False
    ) -> Generator[LogLine, None, None]:
        """What the calls of a function printed and logged, and the errors they ended with, as ``taskworker logs``.

        Args:
            function: its name; may be left out with ``call_id``.
            call_id: only of calls whose id begins so, and of those they led to.
            since_ms: only lines that are not older, in ms since 1970.
            tail: only the last so many of those kept.
            follow: whether to go on with those that come, without end.

        Raises:
            InvalidArgument: neither a function nor a call is given.
        """
        return _logs_of(self.address, function, call_id, since_ms, tail, follow=follow)

    @arguments_checked
    def resolve(self, name: str, type: str = "A", *, timeout_s: float | None = None) -> list[str]:  # noqa: A002
        """Resolve a name by the pool: one of its own, as ``worker_001.worker.hive``, or any other.

        Args:
            name: the name; for PTR an address will do.
            type: A, AAAA, CNAME, MX, TXT, SRV, NS or PTR.
            timeout_s: how long to wait.

        Returns:
            The records as texts, at least one; names in them have no dot at their end.

        Raises:
            NameNotFound: it does not exist, or has no such records.
            PermissionDenied: it is blocked, or is an outside name that means a private address.
            NameServersUnavailable: no name server answers.
        """
        request = taskworker_pb2.DNSRequest(domain=name, request_type=type)
        response = self._channel.unary(self._channel.dns.ResolveDomain, request, self._deadline(timeout_s))
        return list(response.answers)


def _values_of(items: Generator[str, None, None]) -> Generator[Any, None, None]:
    with contextlib.closing(items):
        for item in items:
            yield value_of(item)


def value_of(result: str) -> Any:
    """What a function gave, from JSON.

    Raises:
        FunctionFailed: Python cannot read it; the text says why.
    """
    try:
        return json.loads(result)
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError:  # the pool has seen that it is JSON
        fault = "it holds a number of too many digits; let the function return it as a text"
    raise FunctionFailed(f"the result cannot be read by Python: {fault}")


def _logs_of(
    address: str, function: str, call_id: str, since_ms: int, tail: int | None, *, follow: bool
) -> Generator[LogLine, None, None]:
    from taskworker.client.functions import FunctionClient

    with FunctionClient(address) as client:
        yield from client.logs(function, follow=follow, since_ms=since_ms, tail=tail, call_id=call_id)


def _items_of(messages: IncomingMessages[functions_pb2.FunctionItem]) -> Generator[str, None, None]:
    with messages:
        for message in messages:
            yield message.item
