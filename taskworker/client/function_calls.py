"""The calls on functions (calling, deploying, watching), and name resolution."""

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
    """The client's methods on functions, and name resolution."""

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
        """Call a function by name, and return its result as a JSON value.

        Args:
            function: name of the function.
            args: positional arguments; JSON values.
            kwargs: keyword arguments; JSON values.
            user_id: the user on whose behalf it runs.
            timeout_s: seconds after which the call is ended, wherever it runs.

        Raises:
            FunctionNotFound: there is no such function.
            FunctionFailed: it raised an exception; the text has its type, its message and its own frames.
            FunctionLimitExceeded: the call exceeded a limit.
            FunctionBusy: as many calls are running and waiting as are allowed; try again later.
            DeadlineExceeded: the time is up.
            InvalidArgument: an argument does not fit its parameter.
            StorageError: another error of ``taskworker.errors``.
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
        """Like :meth:`call`, with arguments as texts (JSON values, or bare words), and the result as JSON text."""
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
        """Call a generator function, and yield its items as they arrive; any other function yields its result.

        Leaving the iteration early ends the call.

        Args:
            function: name of the function.
            args: positional arguments; JSON values.
            kwargs: keyword arguments; JSON values.
            user_id: the user on whose behalf it runs.
            timeout_s: seconds after which the call is ended, wherever it runs.

        Raises:
            CallUncertain: the worker was lost after some items had arrived.
            StorageError: other errors as for :meth:`call`.
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
        """Like :meth:`stream`, with arguments as texts (JSON values, or bare words), and items as JSON text."""
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
        """Deploy a function to the pool as the newest version of ``name``, like ``taskworker deploy``.

        A worker imports it first; a version that fails to import does not go live.

        Args:
            name: the name that callers use.
            entry: ``module:function``.
            user_id: the user who deploys it.
            directory: the module's directory; the modules that it imports from there are packed as well.
            include: further files of that directory to pack: names, directories, or patterns.
            requirements: path of a requirements file.
            dry_run: import it on a worker and report what would be packed, but do not deploy it.
            timeout_s: seconds that the pool may take; getting packages is not counted.
            options: options of ``TaskWorker.function``, and ``needs``: labels that a worker must have to run it.

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
        """The pool's functions by name, with statistics of their calls, as listed by ``taskworker functions``."""
        from taskworker.client.functions import FunctionClient

        with FunctionClient(self.address) as client:
            return client.functions(timeout_s=self._deadline(timeout_s).remaining_s())

    @arguments_checked
    def logs(
        self, function: str = "", *, call_id: str = "", since_ms: int = 0, tail: int | None = None, follow: bool = False
    ) -> Generator[LogLine, None, None]:
        """Lines that calls of a function printed and logged, and the errors they ended with, like ``taskworker logs``.

        Args:
            function: name of the function; may be left out if ``call_id`` is given.
            call_id: only lines of calls whose id starts with this, and of their nested calls.
            since_ms: only lines from this time on, ms since 1970.
            tail: only this many of the last lines.
            follow: whether to keep yielding new lines without end.

        Raises:
            InvalidArgument: neither a function nor a call is given.
        """
        return _logs_of(self.address, function, call_id, since_ms, tail, follow=follow)

    @arguments_checked
    def resolve(self, name: str, type: str = "A", *, timeout_s: float | None = None) -> list[str]:  # noqa: A002
        """Resolve a name through the pool: a name of its own zone, such as ``worker_001.worker.hive``, or any other.

        Args:
            name: the name; for PTR, an address is accepted.
            type: A, AAAA, CNAME, MX, TXT, SRV, NS or PTR.
            timeout_s: seconds to wait.

        Returns:
            The records as texts, at least one; names in them have no trailing dot.

        Raises:
            NameNotFound: the name does not exist, or has no such records.
            PermissionDenied: the name is blocked, or it is an outside name that resolves to a private address.
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
    """Decode the JSON result of a function.

    Raises:
        FunctionFailed: Python cannot read it; the text says why.
    """
    try:
        return json.loads(result)
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError:  # the pool has checked that it is JSON
        fault = "it has a number of too many digits; let the function return it as a string"
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
