"""What workers may do with their certificates: nothing but what their own calls and their membership need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from storage import FileNotFound
from storage.clocks import wall_ms
from taskworker import Client
from taskworker.auth.authority import Authority
from taskworker.auth.identity import POOL_DNS_NAME, MemberIdentity, MemberKind
from taskworker.calls import call_tokens
from taskworker.client.pool import PoolClient
from taskworker.protos import functions_pb2, outside_pb2, taskworker_pb2
from taskworker.rpc.dialling import dial_secure
from taskworker.rpc.token_channel import TokenChannel
from tests.services.calls import methods, outcome, outcomes
from tests.services.member_workers import serving
from tests.services.members import Stand

METHODS = methods()
OWN = {
    # What a worker may call for itself. Services find out whether it speaks for itself.
    "taskworker.pool.PoolService.Describe",
    "taskworker.pool.PoolService.Join",
    "taskworker.pool.PoolService.Heartbeat",
    "taskworker.pool.PoolService.Leave",
    "taskworker.members.MemberService.Renew",
    "taskworker.functions.HostingService.Offer",
    "taskworker.functions.HostingService.FetchBundle",
    "taskworker.outside.OutsideService.GetSecret",
    "taskworker.outside.OutsideService.CallExternalApi",
    "taskworker.outside.OutsideService.Resolve",
}
ANY_USER = {"taskworker.store.StoreService.Describe"}  # parameters of the store, which workers know anyway
HEALTH = {name for name in METHODS if name.startswith("grpc.health.")}
REFLECTION = {name for name in METHODS if name.startswith("grpc.reflection.")}
FOR_CALLS = {
    # What a worker may call for a call that runs at it, as the call's user.
    name
    for name in METHODS
    if name.startswith(("taskworker.FileService.", "taskworker.RPCService."))
    or (
        name.startswith("taskworker.store.StoreService.")
        and name.rpartition(".")[2] not in ("Stats", "Scrub", "Repair", "Collect", "Rebuild")
        # What functions push goes through the pool.
        and name.rpartition(".")[2] not in ("PrepareChunks", "PlaceChunks", "SettleChunks")
    )
}
REFUSED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    stand = Stand(tmp_path_factory.mktemp("stand"))
    yield stand
    stand.close()


@pytest.fixture(scope="module")
def channel(stand: Stand) -> Iterator[grpc.Channel]:
    with stand.members["w1"].dial() as channel:
        yield channel


@pytest.mark.parametrize("name", METHODS)
def test_a_worker_may_call_what_its_membership_needs(channel: grpc.Channel, name: str) -> None:
    code, text = outcome(channel, METHODS[name])
    if name in OWN:
        assert "needs the right" not in text
        assert code not in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED)
        if "Describe" not in name:
            assert code is not grpc.StatusCode.OK
    elif name not in ANY_USER | HEALTH | REFLECTION:
        assert code in REFUSED, text


@pytest.mark.parametrize("name", METHODS)
def test_for_a_call_that_runs_at_it_a_worker_may_do_what_the_user_may(
    stand: Stand, channel: grpc.Channel, name: str
) -> None:
    token = call_tokens.written(stand.call.token)
    with stand.running("w1"):
        code, text = outcome(channel, METHODS[name], token=token)
        assert name not in FOR_CALLS or code not in REFUSED, text
        if name not in FOR_CALLS | OWN | HEALTH | REFLECTION:
            assert code in REFUSED, text


def test_a_worker_acts_for_no_call_of_another_worker(stand: Stand, channel: grpc.Channel) -> None:
    token = call_tokens.written(stand.call.token)
    secret = outside_pb2.GetSecretRequest(token=stand.call.token, name="key")
    get_secret = METHODS["taskworker.outside.OutsideService.GetSecret"]
    with stand.running("w2"):
        for name in FOR_CALLS:
            assert outcome(channel, METHODS[name], token=token)[0] is grpc.StatusCode.PERMISSION_DENIED
        code, text = outcome(channel, get_secret, secret)
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "does not run at this worker" in text
    for wrong in (token, "twc1.", "twc1." + "00" * 16):  # it is over
        assert outcome(channel, METHODS["taskworker.FileService.Get"], token=wrong)[0] in REFUSED
    with stand.running("w1"):
        assert "does not run" not in outcome(channel, get_secret, secret)[1]


def test_for_a_call_files_are_those_of_its_user(stand: Stand, channel: grpc.Channel) -> None:
    token = call_tokens.written(stand.call.token)
    as_call = TokenChannel(lambda _none: channel, lambda: (token, None))
    with stand.running("w1"):
        client = Client("the pool", channel=as_call)
        assert client.list_files(user_id="ann") == []
        request = taskworker_pb2.GetRequest(file_id="0" * 32, user_id="bob")
        code, text = outcome(channel, METHODS["taskworker.FileService.Get"], request, token)
        assert (code, "cannot act for 'bob'" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
        with pytest.raises(FileNotFound):
            client.get("0" * 32, user_id="ann")


def test_a_worker_fetches_only_bundles_that_it_was_told_to_run(stand: Stand, channel: grpc.Channel) -> None:
    fetch = METHODS["taskworker.functions.HostingService.FetchBundle"]
    wanted = functions_pb2.FetchBundleRequest(file_id="b" * 32, version_id="v" * 32)
    with stand.running("w1"):
        assert outcome(channel, fetch, wanted)[0] is not grpc.StatusCode.PERMISSION_DENIED
        other = functions_pb2.FetchBundleRequest(file_id="b" * 32, version_id="w" * 32)
        assert outcome(channel, fetch, other)[0] is grpc.StatusCode.PERMISSION_DENIED
    assert outcome(channel, fetch, wanted)[0] is grpc.StatusCode.PERMISSION_DENIED


def test_a_worker_offers_functions_for_itself_at_its_own_address(stand: Stand, channel: grpc.Channel) -> None:
    offer = METHODS["taskworker.functions.HostingService.Offer"]
    declared = functions_pb2.FunctionOffer(function_name="f", bundle="b")
    for request, text in (
        (functions_pb2.OfferRequest(worker_id="w2", instance="i", address="127.0.0.1:1"), "cannot speak for worker w2"),
        (functions_pb2.OfferRequest(worker_id="w1", instance="i", address="192.0.2.7:1"), "calls from"),
        (functions_pb2.OfferRequest(worker_id="w1", instance="i", functions=[declared]), "that are deployed"),
    ):
        code, why = outcome(channel, offer, request)
        assert code is not grpc.StatusCode.OK
        assert text in why


@pytest.mark.parametrize("why", ["another authority", "expired", "of another pool"])
def test_certificates_that_the_pool_did_not_issue_open_nothing(stand: Stand, tmp_path: Path, why: str) -> None:
    pool = stand.server.pool
    if why == "expired":
        authority = Authority(tmp_path / "a.pem", pool.pool_id, lambda: wall_ms() - 48 * 3_600_000)
        authority._issuers = pool.authority()._issuers
    else:
        authority = Authority(tmp_path / "a.pem", pool.pool_id if why == "another authority" else "f" * 32)
    pair = authority.issue_own(MemberIdentity(authority.pool_id, MemberKind.WORKER, "w1"))
    trusted = stand.members["w1"].credentials.pair.authorities_pem
    credentials = grpc.ssl_channel_credentials(trusted, pair.key_pem, pair.certificate_pem)
    with dial_secure(stand.members["w1"].members_address, credentials, POOL_DNS_NAME) as channel:
        codes = outcomes(channel, [METHODS[name] for name in (*OWN, *FOR_CALLS)])
        assert set(codes.values()) == {grpc.StatusCode.UNAVAILABLE}


def test_a_denied_worker_may_call_nothing(stand: Stand) -> None:
    with stand.members["w2"].dial() as channel, PoolClient(stand.address) as operator:
        operator.deny_worker("w2")
        with stand.running("w2"):
            for name in (*OWN, *FOR_CALLS):
                code, text = outcome(channel, METHODS[name], token=call_tokens.written(stand.call.token))
                assert code in REFUSED, (name, code, text)


def test_workers_serve_their_pool_only(stand: Stand) -> None:
    member = stand.members["w1"]
    name = member.credentials.identity.dns_name
    pool = stand.server.pool.credentials
    assert pool is not None
    callers: dict[str, Callable[[], grpc.ChannelCredentials]] = {
        "worker": stand.members["w2"].credentials.for_grpc_channel,
        "pool": pool.for_grpc_channel,
    }
    cancel = METHODS["taskworker.functions.InvocationService.Cancel"]
    with serving(member, stand.directory) as address:
        for who, credentials in callers.items():
            with dial_secure(address, credentials(), name) as channel:
                for call in ("Invoke", "InvokeStream", "Prepare", "Cancel"):
                    method = METHODS[f"taskworker.functions.InvocationService.{call}"]
                    if who == "worker":
                        assert outcome(channel, method)[0] is grpc.StatusCode.PERMISSION_DENIED
                assert (outcome(channel, cancel)[0] is grpc.StatusCode.OK) == (who == "pool")
