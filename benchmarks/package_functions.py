"""Functions with compiled packages compared with a plain one: cold starts, warm calls, and memory while idle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import Figure, Limit
from benchmarks.session import Session
from benchmarks.workload import USER
from storage import FileStorage
from storage.errors import InvalidArgument
from taskworker import Client
from taskworker.calls.bundle import PackedFunction
from taskworker.calls.call import Call, RunningCall
from taskworker.calls.spec import FunctionSpec
from taskworker.functions.hosting.host import FunctionHost
from taskworker.functions.hosting.user_files import EmbeddedFiles
from taskworker.functions.packing.modules import pack_module

PLAIN = "plain"
_SOURCES = {
    PLAIN: "def f(size: int) -> int:\n    return size + 1\n",
    "Pillow": (
        "from PIL import Image\n\n\ndef f(size: int) -> int:\n"
        "    return Image.new('RGB', (size, size)).resize((8, 8)).size[0]\n"
    ),
    "numpy": (
        "import numpy\n\n\ndef f(size: int) -> float:\n"
        "    return float(numpy.arange(size * size, dtype=float).reshape(size, size).sum())\n"
    ),
}
_ARGUMENTS = ("32",)
_TIMEOUT_S = 60.0
_NO_INDEX = "No matching distribution"


@dataclass(slots=True)
class PackageSamples:
    """Samples of one function, by round. Its deployment is measured once."""

    deploy_s: list[float] = field(default_factory=list)
    cold_ms: list[float] = field(default_factory=list)
    warm_ms: list[float] = field(default_factory=list)
    idle_mib: list[float] = field(default_factory=list)


class PackageFunctions:
    """The functions whose packages can be installed here.

    Args:
        home: a directory for them.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._packed: dict[str, PackedFunction] = {}
        self.samples: dict[str, PackageSamples] = {}
        self._without = ""

    def deploy(self, address: str) -> None:
        """Deploy the functions to a pool. The time includes pip's work."""
        for name, source in _SOURCES.items():
            module = f"uses_{name.lower()}"
            (self._home / f"{module}.py").write_text(source)
            requirements = self._requirements(name)
            begun = time.perf_counter()
            try:
                with Client(address) as client:
                    client.deploy(module, f"{module}:f", user_id=USER, directory=self._home, requirements=requirements)
            except InvalidArgument as error:
                if _NO_INDEX not in str(error):
                    raise
                self._without = "No package index was reached: functions with compiled packages are not measured."
                continue
            self.samples[name] = PackageSamples([time.perf_counter() - begun])
            spec = FunctionSpec(name=module, entry=f"{module}:f")
            self._packed[name] = pack_module(spec.entry, spec, root=self._home, requirements=requirements)

    def _requirements(self, name: str) -> Path | None:
        if name == PLAIN:
            return None
        path = self._home / f"{name}.txt"
        path.write_text(f"{name}\n")
        return path

    def round(self, session: Session, home: Path) -> None:
        """Start each function in a sandbox, call it, and measure its memory.

        Args:
            session: says how often to call.
            home: a directory for a store and for bundles.
        """
        with _host(home) as host:
            for name, packed in self._packed.items():
                host.register(packed)
                function, samples = host.own_function(packed.spec.name), self.samples[name]
                begun = time.perf_counter()
                host.prepare(function)
                samples.cold_ms.append((time.perf_counter() - begun) * 1e3)
                took: list[float] = []
                for _ in range(session.sizes.function_peer_calls):
                    begun = time.perf_counter()
                    report = host.run(function, Call(packed.spec.name, _ARGUMENTS), _TIMEOUT_S, RunningCall())
                    took.append((time.perf_counter() - begun) * 1e3)
                    if report.error is not None:
                        raise report.error
                samples.warm_ms.append(statistics.median(took))
                held = [warm.memory_bytes for warm in host.views() if warm.name == packed.spec.name]
                samples.idle_mib.append(sum(held) / (1 << 20))

    def remarks(self) -> Iterator[str]:
        """Yield what a reader of the figures has to know."""
        if self._without:
            yield self._without
        yield "At a cold start, the worker has already unpacked the bundle; modules are compiled as they are imported."

    def figures(self) -> Iterator[Figure]:
        """Yield the figures of each function, with those of the plain one as the limit."""
        plain = self.samples[PLAIN]
        for name, samples in self.samples.items():
            for what, unit, values, others in (
                ("deployment, packages fetched", "s", samples.deploy_s, plain.deploy_s),
                ("cold start in a worker that has the bundle", "ms", samples.cold_ms, plain.cold_ms),
                ("warm call in a worker, p50", "ms", samples.warm_ms, plain.warm_ms),
                ("memory of an idle function (PSS)", "MiB", samples.idle_mib, plain.idle_mib),
            ):
                limit = None if name == PLAIN else Limit(f"{PLAIN} function", tuple(others))
                yield Figure(f"{name}: {what}", unit, tuple(values), "lower", limit)


@contextmanager
def _host(home: Path) -> Iterator[FunctionHost]:
    with FileStorage.open(home / "store") as store:
        host = FunctionHost(home / "bundles", lambda call, _s: EmbeddedFiles(store, call.user_id), _calls_nothing)
        try:
            host.start()
            yield host
        finally:
            host.close()


def _calls_nothing(call: Call, _timeout_s: float | None, _asking: RunningCall) -> str:
    raise InvalidArgument(f"{call.function} is not called here")
