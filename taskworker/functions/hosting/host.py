"""Hosts a worker's functions: keeps their bundles and sandboxes, and runs calls in them."""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
from cachetools import LRUCache

from storage.clocks import wall_ms
from storage.errors import InvalidArgument, StorageError
from taskworker.calls.bundle import (
    DEPENDENCIES,
    PLATFORMS,
    BundleCache,
    PackedFunction,
    key_of,
    own_modules_of,
    spec_of,
)
from taskworker.calls.call import Call, CallReport, Items, RunningCall
from taskworker.calls.capabilities import Capabilities, NoCapabilities
from taskworker.calls.imports import hides_any, imports_any
from taskworker.calls.platform import best_of, own_platform
from taskworker.calls.redaction import RedactedCapabilities, Redactor
from taskworker.calls.spec import KEEP_MAX, LIMIT_NAMES, LIMITS_MAX, FunctionSpec
from taskworker.errors import (
    CallAbandoned,
    DeadlineExceeded,
    FunctionBroken,
    FunctionCrashed,
    FunctionFailed,
    FunctionLimitExceeded,
    FunctionNotFound,
    FunctionsUnavailable,
)
from taskworker.functions.hosting.bridge import Bridge, UserFiles
from taskworker.functions.hosting.output import Output as _Output
from taskworker.sandbox import FunctionImage, Keep, Limits, SandboxHost
from taskworker.sandbox import errors as sandbox_errors
from taskworker.sandbox.frames import Cause
from taskworker.sandbox.inside.base import DEAR
from taskworker.sandbox.runtime_root import PACKAGE_NAMES
from taskworker.tracing.spans import SPANS

_ARRIVALS_MAX = 2
"""Bundles that are fetched and unpacked at the same time; each takes its size in memory."""
_HOSTED_MAX = 1_024
"""Versions whose documents are kept in memory; more than are kept unpacked."""
_WANTED_PER_FUNCTION_MAX = 16
"""Versions with the same code that are reported to the pool."""
_REDACTORS_MAX = 4_096
"""Redactors kept for users whose processes serve several calls; more than there are such processes at once."""

FilesOf = Callable[[Call, float | None], UserFiles]
"""Returns the files of a call's user, with a timeout in seconds for each operation."""

CapabilitiesOf = Callable[[Call, float | None, RunningCall], Capabilities]
"""Returns the capabilities of a call, with a timeout in seconds for each request, and a way to end them."""

CallFunction = Callable[[Call, float | None, RunningCall], str]
"""Makes a nested call, with a timeout in seconds; returns its result as JSON."""


_LOADED_LATE = sys.stdlib_module_names | frozenset(PACKAGE_NAMES)
"""Modules that may be imported for a lean function at a time when its own modules could shadow them."""
_json = msgspec.json.Decoder(msgspec.Raw)  # checks a whole document without building objects from it


@dataclass(frozen=True, slots=True)
class HostedFunction:
    """A function ready to be sandboxed."""

    spec: FunctionSpec
    image: FunctionImage


@dataclass(frozen=True, slots=True)
class _Own:
    """A function that this worker's own program declares, with its bundle, which no pool has."""

    hosted: HostedFunction
    bundle: bytes


@dataclass(frozen=True, slots=True)
class Warm:
    """A function's processes on this worker, and the versions that were called, or tried before deployment."""

    name: str
    processes: int
    memory_bytes: int
    versions: tuple[str, ...] = ()


class FunctionHost:
    """Runs calls of functions in sandboxes. Thread-safe.

    Args:
        directory: where bundles are unpacked; created if absent.
        files_of: returns the files of a call's user, for the call.
        call_function: makes a nested call.
        capabilities_of: returns the capabilities of a call.
        limits_max: the highest limits that a function may ask for.
        keep_max: how long a process may serve calls of one user at most, whatever its function asks for.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        directory: Path,
        files_of: FilesOf,
        call_function: CallFunction,
        capabilities_of: CapabilitiesOf = lambda _call, _timeout_s, _asking: NoCapabilities(),
        limits_max: Limits = LIMITS_MAX,
        keep_max: Keep = KEEP_MAX,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._clock_s = clock_s
        self._now_ms = now_ms
        self._keep_max = keep_max
        self._limits_max = limits_max
        self._capabilities_of = capabilities_of
        self._bundles = BundleCache(directory, in_use=self._in_use)
        self._sandbox = SandboxHost(directory, clock_s=clock_s)
        self._files_of = files_of
        self._call_function = call_function
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._started = False
        self._arriving: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()  # one per bundle
        self._arrivals = threading.BoundedSemaphore(_ARRIVALS_MAX)
        self._own: dict[str, _Own] = {}
        self._hosted: LRUCache[str, HostedFunction] = LRUCache(_HOSTED_MAX)
        self._wanted: LRUCache[str, str] = LRUCache(_HOSTED_MAX)  # called or tried versions → keys of their images
        self._redactors: LRUCache[tuple[str, str], Redactor] = LRUCache(_REDACTORS_MAX)

    def start(self) -> None:
        """Start the sandbox, unless it runs already. The first call starts it, too.

        Raises:
            SandboxUnavailable: this machine cannot isolate processes as required; the text says what to enable.
        """
        with self._starting:
            if not self._started:
                try:
                    self._sandbox.start()
                except BaseException:
                    # For the next attempt: this one is closed.
                    self._sandbox = SandboxHost(self._bundles.directory, clock_s=self._clock_s)
                    raise
                self._started = True

    def close(self) -> None:
        """End all calls and processes."""
        self._sandbox.close()

    # -- functions ---------------------------------------------------------------------------------

    def register(self, function: PackedFunction) -> None:
        """Add a function that this worker's own program declares, replacing one of the same name.

        Raises:
            InvalidArgument: its limits exceed what this worker allows.
        """
        hosted = self._host(function.bundle)
        with self._lock:
            self._own[hosted.spec.name] = _Own(hosted, function.bundle)
        self.end_versions(())  # those of the function that was replaced

    @property
    def own(self) -> Mapping[str, HostedFunction]:
        """The functions that this worker's own program declares, by name."""
        with self._lock:
            return {name: own.hosted for name, own in self._own.items()}

    def own_function(self, name: str) -> HostedFunction:
        """A function that this worker's own program declares; unpacked again if it was removed from the disk.

        Raises:
            FunctionNotFound: the program has no such function.
        """
        with self._lock:
            own = self._own.get(name)
        if own is None:
            raise FunctionNotFound(f"this worker has no function {name!r}")
        if not self._bundles.keep(own.hosted.image.key):
            self._bundles.add(own.bundle)
        return own.hosted

    def _in_use(self) -> set[str]:
        """Keys of the bundles in use: those of functions that have processes, and those that no pool has."""
        with self._lock:
            return {own.hosted.image.key for own in self._own.values()} | self._sandbox.keys()

    def deployed_function(self, bundle_id: str, fetch: Callable[[], bytes]) -> HostedFunction:
        """The function of a bundle that is, or will be, deployed; fetches the bundle if it is not here yet.

        Its processes are kept until :meth:`end_versions` is called for it.

        Args:
            bundle_id: id of the bundle: a version of a file.
            fetch: reads the bundle.

        Raises:
            FormatError, InvalidArgument: it is not a valid bundle.
            FunctionsUnavailable: its limits exceed what this worker allows, or there is no room; others may run it.
            StorageError: the bundle cannot be read.
        """
        found = self._here(bundle_id) or self._awaited(bundle_id, fetch)
        with self._lock:
            self._wanted[bundle_id] = found.image.key
        return found

    def _awaited(self, bundle_id: str, fetch: Callable[[], bytes]) -> HostedFunction:
        with self._lock:
            arriving = self._arriving.setdefault(bundle_id, threading.Lock())
        with arriving:  # only one of the waiting threads fetches it
            return self._here(bundle_id) or self._arrived(bundle_id, fetch)

    def end_versions(self, bundle_ids: Iterable[str]) -> None:
        """End the processes of versions that are no longer called, or were not deployed, after their running calls.

        Processes stay if another version with the same code needs them. Processes that no version needs end as well,
        even if none of ``bundle_ids`` had them: a late call can start them again after its version was ended.
        """
        running = self._sandbox.keys()  # first: a version is noted as wanted before it has processes
        with self._lock:
            for bundle_id in bundle_ids:
                self._wanted.pop(bundle_id, None)
            needed = {*self._wanted.values(), *(own.hosted.image.key for own in self._own.values())}
        for key in running - needed:
            self._sandbox.end_when_idle(key)

    def _here(self, bundle_id: str) -> HostedFunction | None:
        with self._lock:
            hosted = self._hosted.get(bundle_id)
        return hosted if hosted is not None and self._bundles.keep(hosted.image.key) else None

    def _arrived(self, bundle_id: str, fetch: Callable[[], bytes]) -> HostedFunction:
        with self._arrivals:
            bundle = fetch()
            try:
                hosted = self._host(bundle)
            except InvalidArgument as error:
                raise FunctionsUnavailable(str(error)) from None
            except OSError as error:
                raise FunctionsUnavailable(f"its bundle cannot be unpacked: {error.strerror or error}") from error
        with self._lock:
            self._hosted[bundle_id] = hosted
        return hosted

    def _host(self, bundle: bytes) -> HostedFunction:
        spec = spec_of(bundle).within(self._limits_max)
        packages = _packages(spec)
        root = self._bundles.add(bundle)
        document = msgspec.json.encode(
            {"entry": spec.entry, "own_modules": spec.own_modules, "config": spec.config, "packages": packages}
        )
        keep = None if spec.keep is None else spec.keep.within(self._keep_max)
        image = FunctionImage(key_of(bundle), root, document, spec.limits, keep, lean=_is_lean(spec, bundle))
        return HostedFunction(spec, image)

    def prepare(self, function: HostedFunction) -> None:
        """Import a function's code in its sandbox, and look up its entry.

        Raises:
            FunctionBroken: the import or the lookup failed; the text has the error.
            FunctionsUnavailable: there is no sandbox here.
        """
        try:
            self.start()
            self._sandbox.warm(function.image)
        except sandbox_errors.SandboxError as error:
            raise _translated(error, function.spec) from error

    def views(self) -> list[Warm]:
        """The functions that have processes here."""
        versions: defaultdict[str, list[str]] = defaultdict(list)
        with self._lock:
            names = {one.image.key: one.spec.name for one in self._all()}
            for bundle_id, key in self._wanted.items():
                versions[key].append(bundle_id)
        return [
            Warm(
                names.get(view.key, view.key),
                len(view.pids),
                view.pss_bytes,
                tuple(versions[view.key][-_WANTED_PER_FUNCTION_MAX:]),
            )
            for view in self._sandbox.views()
        ]

    def _all(self) -> list[HostedFunction]:
        """All functions that are known here; the caller holds the lock."""
        return [*self._hosted.values(), *(own.hosted for own in self._own.values())]

    # -- calls -------------------------------------------------------------------------------------

    def run(
        self,
        function: HostedFunction,
        call: Call,
        timeout_s: float | None,
        running: RunningCall,
        items: Items | None = None,
    ) -> CallReport:
        """Run one call, and report its outcome.

        Args:
            function: a function of this host.
            call: the call to run.
            timeout_s: seconds that the caller waits.
            running: lets other threads end the call.
            items: receives the items of a generator as they arrive, as JSON; None: they form the result.
        """
        report, output, asking = CallReport(), _Output(self._now_ms), RunningCall()
        redactor = self._redactor(function, call)
        started = self._clock_s()
        until = None if timeout_s is None else started + timeout_s

        def left_s() -> float | None:
            return None if until is None else max(0.001, until - self._clock_s())

        wall_s = function.spec.limits.wall_s
        files = self._files_of(call, wall_s if timeout_s is None else min(wall_s, timeout_s))
        bridge = Bridge(
            call,
            files,
            lambda nested, by: self._call_function(nested, left_s(), by),
            RedactedCapabilities(self._capabilities_of(call, timeout_s, asking), redactor),
            disk_bytes=function.spec.limits.disk_bytes,
            asking=asking,
        )
        try:
            with SPANS.internal("call", lambda: {"faas.name": call.function, "faas.invocation_id": call.call_id}):
                report.result = self._result(function, call, left_s(), bridge, output, running, report, items)
        except StorageError as error:
            redactor.error(error)
            report.error = error
        finally:
            bridge.close()
        report.wall_s = self._clock_s() - started
        report.output = output.lines(redactor)
        return report

    def _redactor(self, function: HostedFunction, call: Call) -> Redactor:
        """The redactor for all secrets that a call's process may know, also from calls that it served before."""
        if function.spec.keep is None:
            return Redactor()
        with self._lock:
            return self._redactors.setdefault((function.image.key, call.user_id), Redactor())

    def _result(
        self,
        function: HostedFunction,
        call: Call,
        timeout_s: float | None,
        bridge: Bridge,
        output: _Output,
        running: RunningCall,
        report: CallReport,
        items: Items | None,
    ) -> str:
        wall_s = function.spec.limits.wall_s
        results: list[str] = []

        def check(told: bytes) -> None:
            if told or items is None:  # otherwise everything came in parts
                results.append(_read(told, function.spec))

        request = msgspec.json.encode(
            {
                "args": call.args,
                "kwargs": call.kwargs,
                "user_id": call.user_id,
                "call_id": call.call_id,
                "left_s": wall_s if timeout_s is None else min(wall_s, timeout_s),
                "in_parts": items is not None,
            }
            | ({"traceparent": traceparent} if (traceparent := SPANS.traceparent()) else {})
        )
        try:
            self.start()
            sandboxed = self._sandbox.begin(
                function.image,
                request,
                timeout_s=timeout_s,
                answer=SPANS.bound(bridge),
                output=output.add,
                item=None if items is None else _checked_items(items, function.spec),
                check=check,
                stopped=bridge.stop,
                owner=call.user_id,
            )
            try:
                with running.ended_by(sandboxed.cancel):
                    sandboxed.result()
            finally:
                report.cpu_s, report.memory_bytes = sandboxed.cpu_s, sandboxed.peak_rss_bytes
        except sandbox_errors.SandboxError as error:
            raise _translated(error, function.spec) from error
        if items is None:
            return results[0]
        for result in results:
            items(result, lambda: False)
        return ""


def _is_lean(spec: FunctionSpec, bundle: bytes) -> bool:
    """Whether a function uses so little that the lean base suffices for it."""
    if spec.entry.startswith("pickle:"):
        return False
    modules = own_modules_of(bundle)
    if modules is None or hides_any(modules, _LOADED_LATE):
        return False
    return not imports_any(modules.values(), DEAR)


def _packages(spec: FunctionSpec) -> list[str]:
    """The directories of a bundle from which packages are imported on this machine.

    Raises:
        FunctionsUnavailable: it has no packages for this machine; other workers may run it.
    """
    if not spec.platforms:
        return [DEPENDENCIES]
    here = own_platform()
    tag = None if here is None else best_of(spec.platforms, here)
    if tag is None:
        raise FunctionsUnavailable(
            f"function {spec.name} has packages for {', '.join(spec.platforms)}, and this worker is "
            f"{here.tag if here is not None else 'of an unknown platform'}"
        )
    return [f"{PLATFORMS}/{tag}", DEPENDENCIES]


def _checked_items(items: Items, spec: FunctionSpec) -> Callable[[bytes, Callable[[], bool]], None]:
    return lambda item, over: items(_read(item, spec), over)


def _read(told: bytes, spec: FunctionSpec) -> str:
    """Check that a result, or an item, is JSON; code in the sandbox may have written it directly."""
    try:
        _json.decode(told)
        return told.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FunctionCrashed(f"function {spec.name} answered with something unreadable ({error})") from None


def _translated(error: sandbox_errors.SandboxError, spec: FunctionSpec) -> StorageError:
    """Convert an error of the sandbox to one of the family that callers know."""
    match error:
        case sandbox_errors.CallRefused():
            return _refused(error, spec)
        case sandbox_errors.LimitExceeded():
            return FunctionLimitExceeded(f"function {spec.name}: {error}; {_way_out(error.limit)}")
        case sandbox_errors.CallDeadline():
            way_out = "allow the call more time" if error.of_caller else _way_out("wall")
            return DeadlineExceeded(f"function {spec.name}: {error}; {way_out}")
        case sandbox_errors.CallCancelled():
            return CallAbandoned(f"function {spec.name}: the call was cancelled, and its process ended")
        case sandbox_errors.FunctionBroken():
            return FunctionBroken(f"function {spec.name} cannot be loaded: {error}")
        case sandbox_errors.SandboxUnavailable():
            return FunctionsUnavailable(str(error))
    return FunctionCrashed(f"function {spec.name}: {error}")


def _way_out(limit: str) -> str:
    if limit == "result":
        return "return worker.result_file(path), or the id of a file, or yield it in parts from a generator"
    allow = f'`deploy --limits {limit}=...`, or limits={{"{LIMIT_NAMES[limit]}": ...}} where it is declared'
    return f"{allow}, allows more, up to the operator's --limits-max"


def _refused(error: sandbox_errors.CallRefused, spec: FunctionSpec) -> StorageError:
    if error.cause is Cause.ARGUMENTS:
        return InvalidArgument(f"function {spec.name}: {error}")
    return FunctionFailed(str(error) if error.cause is Cause.EXCEPTION else f"function {spec.name}: {error}")
