"""Uploads by forms of browsers: presigned POST."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from email.message import Message
from urllib.parse import quote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from taskworker.gateways.s3 import checksums
from taskworker.gateways.s3.accounts import Accounts
from taskworker.gateways.s3.bodies import PUT_BYTES_MAX, Expected
from taskworker.gateways.s3.calls import Call, Reply, document
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.post_policy import Limits, checked, claim_of

_FIELDS_BYTES_MAX = 64 * 1024
"""Values of fields and headers of parts together, up to the end of the file's headers."""
_BEFORE_FILE_BYTES_MAX = 2 * _FIELDS_BYTES_MAX
"""The same with all that is between them. Who sends a form is not known before, so it must not go on without end."""
_FIELDS_MAX = 200
_HEADERS_BYTES_MAX = 4096
_FORM = "multipart/form-data"
_KEPT = ("x-amz-meta-", "x-amz-object-lock-")


def is_form(head: Head) -> bool:
    """Whether a request is one of a browser's form."""
    return head.method == "POST" and head.fields.get("content-type", "").lower().startswith(_FORM)


def post(
    head: Head,
    bucket: str,
    pieces: Iterable[bytes],
    accounts: Accounts,
    put_as: Callable[[Call, Iterator[bytes], bool], Reply],
    now_ms: int,
    scheme: str,
) -> Reply:
    """PostObject.

    Args:
        head: the request.
        bucket: where it was sent to.
        pieces: of its body.
        accounts: who may sign forms.
        put_as: puts an object; see :func:`~taskworker.gateways.s3.objects.put`.
        now_ms: when it came, in milliseconds since 1970.
        scheme: ``http`` or ``https``.

    Raises:
        S3Error: the form is malformed, not signed, or not what its policy allows.
    """
    form = Form(head, pieces)
    fields = form.fields
    claim = claim_of(fields)
    account = accounts.find(claim.access_key_id)
    limits = checked(claim, fields, bucket, account.secret, now_ms=lambda: now_ms)
    key = fields.get("key", "").replace("${filename}", form.file_name)
    if not key:
        raise S3Error("InvalidArgument", "the form has no field key, or it is empty", ArgumentName="key")
    put_head = Head("POST", f"/{quote(bucket)}/{quote(key)}", "", _headers(head, fields))
    sums = tuple((one, fields[name]) for name, one in checksums.BY_HEADER.items() if name in fields)
    for one, value in sums:
        checksums.decoded(value, one.size)
    call = Call(put_head, account, bucket, key, Expected(checksums=sums), now_ms, scheme)
    reply = put_as(call, _limited(form.content(), limits), False)
    return _told(reply, fields, call)


class Form:
    """A form that comes piece by piece: its fields, and then its file.

    Args:
        head: the request.
        pieces: of its body.

    Attributes:
        fields: those before the file, with names in lower case.
        file_name: what the browser says the file is called, without directories.

    Raises:
        S3Error: it is malformed, or has no file.
    """

    def __init__(self, head: Head, pieces: Iterable[bytes]) -> None:
        boundary = _parameter(head.fields["content-type"], "boundary")
        if not boundary or not 1 <= len(boundary) <= 70:
            raise S3Error("MalformedPOSTRequest", "the form's content-type has no boundary")
        self.fields: dict[str, str] = {}
        self.file_name = ""
        self._pieces = iter(pieces)
        self._size = 0
        self._header = bytearray()
        self._value = bytearray()
        self._name = ""
        self._in_file = self._ended = False
        self._content: list[bytes] = []
        callbacks: dict[str, Callable[..., None]] = {
            "on_header_field": self._on_header,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_begin": self._on_part_begin,
            "on_part_data": self._on_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }
        self._disposition = ""
        self._parser = MultipartParser(boundary.encode("latin-1", "replace"), callbacks)  # type: ignore[arg-type]
        self._fed = 0
        while not self._in_file:
            if self._fed > _BEFORE_FILE_BYTES_MAX:
                raise _too_long()
            if not self._feed():
                raise S3Error("InvalidArgument", "the form has no file", ArgumentName="file")

    def content(self) -> Iterator[bytes]:
        """The file.

        Raises:
            S3Error: the form ends before it does.
        """
        while True:
            taken, self._content = self._content, []
            yield from taken
            if self._ended:
                return
            if not self._feed():
                raise S3Error("IncompleteBody", "the form ended before its file did; send it again")

    def _feed(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._fed += len(piece)
        try:
            self._parser.write(piece)
        except FormParserError:
            raise S3Error("MalformedPOSTRequest", "the body is no form as its content-type says") from None
        return True

    def _on_part_begin(self) -> None:
        self._disposition = ""
        self._value.clear()

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._check_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        if b":" not in self._header:
            self._header += b":"
        self._header += data[start:end]
        self._check_header()

    def _on_header_end(self) -> None:
        if not self._in_file:
            self._count(len(self._header))
        name, _, value = bytes(self._header).partition(b":")
        self._header.clear()
        if name.strip().lower() == b"content-disposition":
            self._disposition = value.decode("utf-8", "replace").strip()

    def _on_headers_finished(self) -> None:
        self._name = _parameter(self._disposition, "name").lower()
        if self._name == "file" and not self._in_file:
            self._in_file = True
            self.file_name = _parameter(self._disposition, "filename").replace("\\", "/").rpartition("/")[2]

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._ended:
            return  # fields after the file are ignored, as Amazon does
        if self._in_file:
            self._content.append(data[start:end])
            return
        self._count(end - start)
        self._value += data[start:end]

    def _on_part_end(self) -> None:
        if self._in_file:
            self._ended = True
            return
        if len(self.fields) >= _FIELDS_MAX:
            raise S3Error("MalformedPOSTRequest", f"a form may have at most {_FIELDS_MAX} fields")
        self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _on_end(self) -> None:
        self._ended = True

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > _FIELDS_BYTES_MAX:
            raise _too_long()

    def _check_header(self) -> None:
        if len(self._header) > _HEADERS_BYTES_MAX:
            raise S3Error("MalformedPOSTRequest", f"a header of a part has more than {_HEADERS_BYTES_MAX} bytes")


def _too_long() -> S3Error:
    return S3Error("MaxMessageLengthExceeded", f"the fields of a form may have {_FIELDS_BYTES_MAX} bytes at most")


def _limited(content: Iterator[bytes], limits: Limits) -> Iterator[bytes]:
    most = PUT_BYTES_MAX if limits.most is None else limits.most
    size = 0
    for piece in content:
        size += len(piece)
        if size > most:
            raise S3Error("EntityTooLarge", f"the policy allows at most {most} bytes", MaxSizeAllowed=str(most))
        yield piece
    if size < limits.least:
        raise S3Error(
            "EntityTooSmall", f"the policy wants at least {limits.least} bytes", MinSizeAllowed=str(limits.least)
        )


def _headers(head: Head, fields: dict[str, str]) -> tuple[tuple[str, str], ...]:
    kept = ("cache-control", "content-type", "content-disposition", "content-encoding", "expires")
    given = {name: value for name, value in fields.items() if name in kept or name.startswith(_KEPT)}
    if "acl" in fields:
        given["x-amz-acl"] = fields["acl"]
    if "tagging" in fields:
        raise S3Error("NotImplemented", "tags cannot be given in a form; set them afterwards")
    for name, value in given.items():
        if not value.isprintable():
            raise S3Error("InvalidArgument", "a field has control characters", ArgumentName=name)
    own = ((name, head.fields[name]) for name in ("host", "origin") if name in head.fields)
    return (*own, *given.items())


def _told(reply: Reply, fields: dict[str, str], call: Call) -> Reply:
    location = f"{call.scheme}://{call.host}{call.head.path}"
    etag = dict(reply.headers).get("etag", "")
    target = fields.get("success_action_redirect") or fields.get("redirect")
    if target and target.startswith(("http://", "https://")) and target.isprintable():
        joint = "&" if "?" in target else "?"
        query = f"bucket={quote(call.bucket)}&key={quote(call.key)}&etag={quote(etag)}"
        return Reply(303, [*reply.headers, ("location", f"{quote(target, safe=':/?&=%#+,;@~')}{joint}{query}")])
    headers = [*reply.headers, ("location", quote(location, safe=":/%[]"))]
    status = fields.get("success_action_status")
    if status == "201":
        inner = [("Location", location), ("Bucket", call.bucket), ("Key", call.key), ("ETag", etag)]
        return document(("PostResponse", inner), status=201, headers=headers)
    return replace(reply, status=200 if status == "200" else 204, headers=headers)


def _parameter(header: str, name: str) -> str:
    message = Message()
    message["content-type"] = header.replace("\r", " ").replace("\n", " ")
    found = message.get_param(name, "")
    return found if isinstance(found, str) else found[2]
