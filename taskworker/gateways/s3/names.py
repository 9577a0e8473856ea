"""Buckets and keys as names of a user's files: an object is the file ``BUCKET/KEY``."""

from __future__ import annotations

import re

from storage.errors import InvalidArgument
from storage.limits import check_filename
from taskworker.gateways.s3.errors import S3Error

KEY_BYTES_MAX = 1024
OWN = ".s3/"
"""Where the gateway keeps what is no object. No bucket's name begins with a dot."""

_CREATED = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_FOUND = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_. -]{0,254}")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")


def check_new_bucket(bucket: str) -> None:
    """Check the name of a bucket to be made, by S3's rules.

    Raises:
        S3Error: it does not follow them.
    """
    if not _CREATED.fullmatch(bucket) or ".." in bucket or _ADDRESS.fullmatch(bucket):
        raise S3Error(
            "InvalidBucketName",
            "names of buckets have 3 to 63 lower-case letters, digits, dots and hyphens, and do not begin "
            "or end with a dot or hyphen",
            BucketName=bucket,
        )


def is_bucket(name: str) -> bool:
    """Whether the first component of a file's name can be used as a bucket."""
    return _FOUND.fullmatch(name) is not None


def filename(bucket: str, key: str) -> str:
    """The name of an object's file.

    Raises:
        S3Error: no file may have this name.
    """
    if not is_bucket(bucket):
        raise S3Error("NoSuchBucket", "there is no such bucket; make it first", BucketName=bucket)
    if len(key.encode("utf-8", "surrogatepass")) > KEY_BYTES_MAX:
        raise S3Error("KeyTooLongError", f"keys have at most {KEY_BYTES_MAX} bytes", Size=str(len(key)))
    name = f"{bucket}/{key}"
    try:
        check_filename(name)
    except InvalidArgument as error:
        too_long = len(name.encode("utf-8", "surrogatepass")) > KEY_BYTES_MAX
        code = "KeyTooLongError" if too_long else "InvalidArgument"
        raise S3Error(code, f"no file can have the name BUCKET/KEY of this object: {error}", Key=key) from None
    return name


def settings_name(bucket: str) -> str:
    """The file with a bucket's settings."""
    return f"{SETTINGS}{bucket}"


SETTINGS = f"{OWN}buckets/"

UPLOADS = f"{OWN}uploads/"
"""What the names of all unfinished multipart uploads begin with."""

PARTS = f"{OWN}parts/"
"""What the names of all parts begin with."""


def locks_prefix(bucket: str) -> str:
    """What the names of the files begin with that have the locks of a bucket's versions."""
    return f"{OWN}locks/{bucket}/"


def lock_name(bucket: str, version_id: str) -> str:
    """The file with the lock of a version."""
    return f"{locks_prefix(bucket)}{version_id}"


def uploads_prefix(bucket: str) -> str:
    """What the names of a bucket's unfinished multipart uploads begin with."""
    return f"{UPLOADS}{bucket}/"


def upload_name(bucket: str, upload_id: str) -> str:
    """The file with what was said when a multipart upload began.

    Raises:
        S3Error: there can be no upload with such an id.
    """
    if not is_upload_id(upload_id):
        raise no_upload(upload_id)
    return f"{uploads_prefix(bucket)}{upload_id}"


def upload_id_in(name: str) -> str:
    """The id of an unfinished multipart upload, from the name of its file; see :func:`upload_name`."""
    return name.rpartition("/")[2]


def is_upload_id(text: str) -> bool:
    """Whether there can be a multipart upload with such an id."""
    return _UPLOAD_ID.fullmatch(text) is not None


def no_upload(upload_id: str) -> S3Error:
    """The error of a multipart upload that there is not."""
    return S3Error("NoSuchUpload", "there is no such upload; it may have been completed or aborted", UploadId=upload_id)


def parts_prefix(upload_id: str) -> str:
    """What the names of an upload's parts begin with."""
    return f"{PARTS}{upload_id}/"


def part_name(upload_id: str, number: int) -> str:
    """The file with a part."""
    return f"{parts_prefix(upload_id)}{number:05d}"
