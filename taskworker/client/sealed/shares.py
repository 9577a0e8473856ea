"""What a user shares under sealed names, which change with the key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from storage.errors import InvalidArgument, SealBroken
from taskworker.client.deadline import Deadline
from taskworker.client.sealed.files import SealedFiles
from taskworker.client.sealed.keys import OwnKey
from taskworker.client.sealed.names import key_in
from taskworker.errors import CallNotOffered
from taskworker.protos import sharing_pb2
from taskworker.protos.sharing_pb2_grpc import SharingServiceStub

_ENDLESS = Deadline(None)


class SealedShares:
    """What a user shares, and what others share with the user, with the current key and former ones.

    Args:
        files: the user's files.
        user_id: the user.
        now_ms: this machine's clock, milliseconds since 1970.
    """

    def __init__(self, files: SealedFiles, user_id: str, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._files = files
        self._user = user_id
        self._stub = SharingServiceStub(files.channel.channel)
        self._former = {key.id: key for key in files.keys.former}
        self._found = self._find()

    def _find(self) -> sharing_pb2.ListSharesResponse:
        request = sharing_pb2.ListSharesRequest(user_id=self._user)
        try:
            return self._files.channel.unary(self._stub.ListShares, request, _ENDLESS)
        except CallNotOffered:  # a server without users
            return sharing_pb2.ListSharesResponse()

    def share_anew(self, key: OwnKey, filename: str) -> None:
        """Share a file under its new name as it is shared under the one that a former key gave it."""
        former = key.sealed_name(self._user, filename)
        for grant in self._found.given:
            if grant.name == former:
                request = sharing_pb2.ShareRequest(
                    user_id=self._user,
                    name=self._files.keys.current.sealed_name(self._user, filename),
                    with_user=grant.with_user,
                    write=grant.write,
                    ttl_s=self._left_s(grant),
                )
                self._files.channel.unary(self._stub.Share, request, _ENDLESS)

    def unshare_former(self, key: OwnKey, filename: str) -> None:
        """End sharing a file under the name that a former key gave it."""
        former = key.sealed_name(self._user, filename)
        if any(grant.name == former for grant in self._found.given):
            request = sharing_pb2.UnshareRequest(user_id=self._user, name=former)
            with suppress(InvalidArgument):  # it is shared no more
                self._files.channel.unary(self._stub.Unshare, request, _ENDLESS)

    def share_rest_anew(self) -> None:
        """Share anew what was shared meanwhile, and names of which there are no files, as there may be some later."""
        self._found = self._find()
        shared = {(key, filename) for key, filename, _ in self._with_former_keys(self._found.given)}
        for key, filename in shared:
            if self._files.head(key, self._user, filename, _ENDLESS) is None:
                self.share_anew(key, filename)
                self.unshare_former(key, filename)

    def received_with_former_keys(self) -> Iterator[tuple[str, str, str]]:
        """The names of files that others share and that are sealed with former keys, their owners, and the keys."""
        for key, filename, owner in self._with_former_keys(self._found.received):
            yield filename, owner, key.id

    def _with_former_keys(self, grants: Iterable[sharing_pb2.Grant]) -> Iterator[tuple[OwnKey, str, str]]:
        """Key, name and owner of what is sealed with a former key. Other users may share any name: most are not."""
        for grant in grants:
            key = self._former.get(key_in(grant.name) or "")
            if key is not None:
                with suppress(SealBroken):
                    yield key, key.opened_name(grant.owner, "", grant.name), grant.owner

    def _left_s(self, grant: sharing_pb2.Grant) -> float:
        """For how many seconds more something is shared; 0: until it is taken back. The server's clock may differ."""
        if not grant.expires_ms:
            return 0.0
        left_ms = grant.expires_ms - self._now_ms()
        return min(max(left_ms, 1000), grant.expires_ms - grant.created_ms) / 1000
