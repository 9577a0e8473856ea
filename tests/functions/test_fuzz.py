"""Whatever comes over the wire for functions, the answer is a status that is meant, and the servers go on."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from taskworker.apps.pool_server import PoolServer
from taskworker.calls.bundle import packed
from taskworker.calls.chains import CALL_KEY, CHAIN_KEY
from taskworker.calls.spec import FunctionSpec
from taskworker.pool.options import PoolOptions
from taskworker.protos import functions_pb2, taskworker_pb2
from taskworker.protos.functions_pb2_grpc import FunctionServiceStub, HostingServiceStub, InvocationServiceStub
from taskworker.protos.taskworker_pb2_grpc import RPCServiceStub
from taskworker.rpc.dialling import dial
from taskworker.worker.volume import VolumeWorker
from tests.functions.processes import USER, FunctionPool

OK = grpc.StatusCode.OK
MEANT = {
    OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
NEVER_OUTCOMES = {"ServerFault", "FunctionCrashed"}
TIMEOUT_S = 60.0
FUZZ = settings(max_examples=60, deadline=None)
MODULE = """
def add(a: int, b: int = 1) -> int:
    return a + b


def echo(*args, **kwargs):
    return len(args) + len(kwargs)
"""


class Served:
    """A pool and a worker of it, spoken to by a stranger."""

    def __init__(self, pool: FunctionPool) -> None:
        self.pool = pool
        self.to_pool = dial(pool.address)
        self.to_worker = grpc.insecure_channel(pool.workers["w0"].address)
        self.rpc = RPCServiceStub(self.to_pool)
        self.functions = FunctionServiceStub(self.to_pool)
        self.hosting = HostingServiceStub(self.to_pool)
        self.invocation = InvocationServiceStub(self.to_worker)

    def close(self) -> None:
        self.to_pool.close()
        self.to_worker.close()

    def require_alive(self) -> None:
        assert self.pool.client.call("add", [3, 4], user_id=USER) == 7

    def deployed_and_called(self, bundle: bytes, name: str) -> grpc.StatusCode:
        """The code of deploying; if it is taken, that of calling what was deployed."""
        code = _code(lambda: self.functions.Deploy(functions_pb2.DeployRequest(bundle=bundle), timeout=TIMEOUT_S))
        if code is not OK:
            return code
        request = taskworker_pb2.FunctionCallRequest(function_name=name, args=["1"], user_id=USER)
        return _code(lambda: self.rpc.CallFunction(request, timeout=TIMEOUT_S))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("fuzz")
    (directory / "app.py").write_text(MODULE)
    with FunctionPool(directory) as pool:
        for name in ("add", "echo"):
            pool.deploy(name, f"app:{name}", directory)
        pool.await_workers("echo", 3)
        served = Served(pool)
        yield served
        served.require_alive()
        assert all(process.alive for process in (pool.pool_process, *pool.workers.values()))
        served.close()


def _code(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return OK


# -- any bytes -------------------------------------------------------------------------------------

SERVICES = [
    (taskworker_pb2.DESCRIPTOR.services_by_name["RPCService"], "pool"),
    (functions_pb2.DESCRIPTOR.services_by_name["FunctionService"], "pool"),
    (functions_pb2.DESCRIPTOR.services_by_name["HostingService"], "pool"),
    (functions_pb2.DESCRIPTOR.services_by_name["InvocationService"], "worker"),
]
METHODS = {
    f"/{service.full_name}/{method.name}": (method, where) for service, where in SERVICES for method in service.methods
}


@pytest.mark.parametrize("path", METHODS)
@settings(max_examples=25, deadline=None)
@given(message=st.binary(max_size=200))
def test_any_bytes(path: str, message: bytes, served: Served) -> None:
    method: MethodDescriptor
    method, where = METHODS[path]
    channel = served.to_pool if where == "pool" else served.to_worker
    if method.server_streaming:
        stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path)
        # A follower of a log waits for lines that never come.
        code = _code(lambda: next(stream(message, timeout=0.05), None))
        assert code in MEANT | {grpc.StatusCode.DEADLINE_EXCEEDED}
    else:
        unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        assert _code(lambda: unary(message, timeout=TIMEOUT_S)) in MEANT


# -- calls -----------------------------------------------------------------------------------------

some_words = st.sampled_from(
    ["", "1", "NaN", "1e999", "[" * 20_000, '"\\ud800"', "null", "{", "9" * 5_000, "\0", "a,b"]
)
some_texts = some_words | st.text(max_size=20)
some_names = st.sampled_from(["add", "echo", "", "absent", "taskworker:functions", "a" * 65, "../add"]) | st.text(
    max_size=70
)
some_ascii = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=300)


@FUZZ
@given(
    name=some_names,
    args=st.lists(some_texts, max_size=4),
    kwargs=st.dictionaries(some_texts, some_texts, max_size=3),
    user=some_texts,
    chain=some_ascii | st.lists(st.sampled_from(["add", "echo", "x"]), max_size=20).map(",".join),
    call_id=some_ascii,
)
def test_calls(
    served: Served, name: str, args: list[str], kwargs: dict[str, str], user: str, chain: str, call_id: str
) -> None:
    request = taskworker_pb2.FunctionCallRequest(function_name=name, args=args, kwargs=kwargs, user_id=user)
    metadata = ((CHAIN_KEY, chain.strip()), (CALL_KEY, call_id.strip()))
    assert _code(lambda: served.rpc.CallFunction(request, timeout=TIMEOUT_S, metadata=metadata)) in MEANT


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1 << 20, OK), (7 << 20, grpc.StatusCode.INVALID_ARGUMENT), (9 << 20, grpc.StatusCode.RESOURCE_EXHAUSTED)],
)
def test_arguments_without_measure(served: Served, size: int, expected: grpc.StatusCode) -> None:
    request = taskworker_pb2.FunctionCallRequest(function_name="echo", args=["x" * size], user_id=USER)
    assert _code(lambda: served.rpc.CallFunction(request, timeout=TIMEOUT_S)) is expected


@FUZZ
@given(data=st.data())
def test_invocations(served: Served, data: st.DataObject) -> None:
    known = served.pool.status("echo")
    request = functions_pb2.InvokeRequest(
        call_id=data.draw(some_texts),
        function_name=data.draw(some_names),
        file_id=data.draw(st.sampled_from(["", "0" * 32, "x"]) | some_texts),
        version_id=data.draw(st.sampled_from([known.version_id, "0" * 64]) | some_texts),
        args=data.draw(st.lists(some_texts, max_size=4)),
        kwargs=data.draw(st.dictionaries(some_texts, some_texts, max_size=3)),
        user_id=data.draw(some_texts),
        chain=data.draw(st.lists(some_texts, max_size=30)),
        token=data.draw(some_texts),
    )
    answer = served.invocation.Invoke(request, timeout=TIMEOUT_S)
    assert answer.kind not in NEVER_OUTCOMES, answer.text


def test_an_invocation_without_measure(served: Served) -> None:
    found = served.pool.functions.history("echo")[0]
    file_id = served.pool.client.find("echo", user_id="taskworker:functions").file_id  # type: ignore[union-attr]
    request = functions_pb2.InvokeRequest(
        function_name="echo", file_id=file_id, version_id=found.version_id, args=["x" * (7 << 20)]
    )
    assert served.invocation.Invoke(request, timeout=TIMEOUT_S).kind == "InvalidArgument"
    request.args[0] = "x" * (9 << 20)
    assert _code(lambda: served.invocation.Invoke(request, timeout=TIMEOUT_S)) is grpc.StatusCode.RESOURCE_EXHAUSTED


# -- offers ----------------------------------------------------------------------------------------


@FUZZ
@given(
    worker=st.sampled_from(["w0", "w1", ""]) | some_texts,
    instance=some_texts,
    names=st.lists(some_names, max_size=3),
    ttl=st.floats(),
    number=st.integers(0, (1 << 32) - 1),
)
def test_offers_of_strangers(
    served: Served, worker: str, instance: str, names: list[str], ttl: float, number: int
) -> None:
    offers = [
        functions_pb2.FunctionOffer(function_name=name, cache_ttl=ttl, concurrency=number, queue=number)
        for name in names
    ]
    warm = [functions_pb2.WarmFunction(function_name=name, processes=number, memory_bytes=1 << 63) for name in names]
    request = functions_pb2.OfferRequest(worker_id=worker, instance=instance, functions=offers, warm=warm)
    assert _code(lambda: served.hosting.Offer(request, timeout=TIMEOUT_S)) in MEANT - {OK}


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostingServiceStub, str]]:
    """The way to a pool that gave a worker a lease, and that worker's instance, as a hostile one knows it."""
    server = PoolServer(tmp_path_factory.mktemp("joined"), options=PoolOptions(lease_s=600.0))
    address = f"127.0.0.1:{server.start('127.0.0.1:0')}"
    worker = VolumeWorker("liar", address, tmp_path_factory.mktemp("liar"))
    worker.start("127.0.0.1:0")
    with grpc.insecure_channel(address) as channel:
        yield HostingServiceStub(channel), worker._instance
        listed = FunctionServiceStub(channel).ListFunctions(functions_pb2.ListFunctionsRequest(), timeout=TIMEOUT_S)
        for function in listed.functions:
            FunctionSpec(
                function.function_name,
                "app:f",
                cache_ttl_s=function.cache_ttl,
                concurrency=function.concurrency,
                queue=function.queue,
            ).checked()
    worker.stop(0.0)
    server.stop(0.0)


@FUZZ
@given(
    names=st.lists(some_names, min_size=1, max_size=3),
    ttl=st.floats() | st.just(1.0),
    number=st.integers(0, 100) | st.integers(0, (1 << 32) - 1),
)
def test_offers_of_a_hostile_worker(
    joined: tuple[HostingServiceStub, str], names: list[str], ttl: float, number: int
) -> None:
    offers = [
        functions_pb2.FunctionOffer(function_name=name, cache_ttl=ttl, concurrency=number, queue=number)
        for name in names
    ]
    warm = [functions_pb2.WarmFunction(function_name=name, processes=number, memory_bytes=1 << 63) for name in names]
    request = functions_pb2.OfferRequest(worker_id="liar", instance=joined[1], functions=offers, warm=warm)
    assert _code(lambda: joined[0].Offer(request, timeout=TIMEOUT_S)) in MEANT


def test_an_offer_without_measure(joined: tuple[HostingServiceStub, str]) -> None:
    offers = [functions_pb2.FunctionOffer(function_name=f"f{number}") for number in range(2_000)]
    request = functions_pb2.OfferRequest(worker_id="liar", instance=joined[1], functions=offers)
    assert _code(lambda: joined[0].Offer(request, timeout=TIMEOUT_S)) is grpc.StatusCode.INVALID_ARGUMENT


# -- bundles ---------------------------------------------------------------------------------------


def _tar(
    *entries: tuple[str, bytes],
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """An archive; ``kind``, ``link`` and ``headers`` are of the last entry."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, (name, content) in enumerate(entries):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if number == len(entries) - 1:
                info.type, info.linkname, info.pax_headers = kind, link, headers or {}
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _document(**options: object) -> tuple[str, bytes]:
    return "function.json", FunctionSpec(name="hostile", entry="app:f", **options).to_json()  # type: ignore[arg-type]


APP = ("app/app.py", b"def f(a): return a\n")
GOOD = _tar(APP, _document())
BUNDLES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "zeros": lambda: bytes(10_240),
    "no document": lambda: _tar(APP),
    "document alone": lambda: _tar(_document()),
    "document twice": lambda: _tar(_document(), APP, _document()),
    "not a document": lambda: _tar(APP, ("function.json", b"[1, 2]")),
    "deep document": lambda: _tar(APP, ("function.json", b"[" * 100_000)),
    "cut off": lambda: GOOD[:-9_000],
    "absolute": lambda: _tar(_document(), ("/etc/passwd", b"x")),
    "upwards": lambda: _tar(_document(), ("app/../../x", b"x")),
    "beside": lambda: _tar(_document(), ("elsewhere/x", b"x")),
    "symbolic link": lambda: _tar(_document(), ("app/app.py", b""), kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "hard link": lambda: _tar(_document(), ("app/app.py", b""), kind=tarfile.LNKTYPE, link="function.json"),
    "fifo": lambda: _tar(_document(), ("app/app.py", b""), kind=tarfile.FIFOTYPE),
    "device": lambda: _tar(_document(), ("app/app.py", b""), kind=tarfile.BLKTYPE),
    "directory": lambda: _tar(_document(), ("app/app.py", b""), kind=tarfile.DIRTYPE),
    "deep path": lambda: _tar(_document(), APP, ("app/" + "a/" * 3_000 + "b.py", b"")),
    "long name": lambda: _tar(_document(), APP, ("app/" + "a" * 3_000, b"")),
    "file and directory": lambda: _tar(_document(), ("app/app.py/x", b""), APP),
    "directory and file": lambda: _tar(_document(), APP, ("app/app.py/x", b"")),
    "nul in a name": lambda: _tar(_document(), APP, ("app/x", b""), headers={"path": "app/a\0b"}),
    "name that is no text": lambda: _tar(_document(), APP, ("app/\udcff", b"")),
    "negative size": lambda: _tar(_document(), APP, headers={"size": "-1"}),
    "size beyond the end": lambda: _tar(_document(), APP, headers={"size": str(1 << 62)}),
    "sparse": lambda: _tar(_document(), APP, headers={"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 50)}),
    "sparse, old": lambda: _tar(_document(), APP, headers={"GNU.sparse.map": "0,1,2", "GNU.sparse.size": str(1 << 50)}),
    "long comment": lambda: _tar(_document(), APP, headers={"comment": "x" * (4 << 20)}),
    "many files": lambda: _tar(_document(), *((f"app/{number}", b"") for number in range(20_010))),
    "compressed": lambda: gzip.compress(GOOD),
    "no such entry": lambda: _tar(APP, ("function.json", FunctionSpec(name="hostile", entry="absent:f").to_json())),
    "odd entry": lambda: _tar(APP, ("function.json", FunctionSpec(name="hostile", entry="pickle:../../x").to_json())),
    "absolute entry": lambda: _tar(
        APP, ("function.json", FunctionSpec(name="hostile", entry="pickle:/etc/passwd").to_json())
    ),
}


@pytest.mark.parametrize("what", BUNDLES)
def test_hostile_bundles(served: Served, what: str) -> None:
    assert served.deployed_and_called(BUNDLES[what](), "hostile") in MEANT - {OK}


def test_a_good_one_among_them(served: Served) -> None:
    assert served.deployed_and_called(GOOD, "hostile") is OK


@FUZZ
@given(changes=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_garbled_bundles(served: Served, changes: list[tuple[int, int]]) -> None:
    garbled = bytearray(packed(FunctionSpec(name="hostile", entry="app:f"), {"app/app.py": APP[1]}).bundle)
    for place, byte in changes:
        garbled[place % len(garbled)] = byte
    code = _code(lambda: served.functions.Deploy(functions_pb2.DeployRequest(bundle=bytes(garbled)), timeout=TIMEOUT_S))
    assert code in MEANT


def test_a_bundle_that_is_taken_can_be_unpacked(served: Served) -> None:
    """What only a worker would find out, the pool finds out before."""
    for what in ("deep path", "long name", "file and directory", "directory and file", "document twice"):
        request = functions_pb2.DeployRequest(bundle=BUNDLES[what]())
        assert _code(lambda: served.functions.Deploy(request, timeout=TIMEOUT_S)) in MEANT - {OK}, what  # noqa: B023
