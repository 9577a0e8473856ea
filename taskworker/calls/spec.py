"""A function's specification: its name, how it may be called, and the limits of a call."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from storage.errors import FormatError, InvalidArgument
from taskworker.calls.labels import check_labels
from taskworker.calls.platform import Platform
from taskworker.sandbox import Keep, Limits

NAME_MAX = 64
CONCURRENCY_MAX = 1024
PROCESS_CALLS_MAX = 1_000_000
PROCESS_S_MAX = 86_400
PLATFORMS_MAX = 16
CONFIG_CHARS_MAX = 64 << 10
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_FORMAT = 1
_MIB = 1 << 20

KEEP_MAX = Keep(calls=PROCESS_CALLS_MAX, seconds=float(PROCESS_S_MAX))
"""How long a process may serve calls of one user; a worker's operator may allow less."""
LIMITS_MAX = Limits(
    memory_bytes=4096 * _MIB,
    cpu_s=3600.0,
    wall_s=3600.0,
    threads=256,
    disk_bytes=4096 * _MIB,
    open_files=1024,
    output_bytes=16 * _MIB,
    result_bytes=8 * _MIB,
)
"""The limits that a function may ask for, unless the operator of the pool or worker sets others."""

_POSSIBLE = Limits(
    memory_bytes=1 << 44,
    cpu_s=30 * 86_400.0,
    wall_s=30 * 86_400.0,
    threads=500,  # all calls of a function together have 4000, and eight run at once
    disk_bytes=1 << 44,
    open_files=65_536,
    output_bytes=1024 * _MIB,
    result_bytes=8 * _MIB,  # a frame of the sandbox's channel
)
"""The most that an operator can allow."""
_LIMIT_FIELDS = tuple(one.name for one in dataclasses.fields(Limits))


def check_name(name: str) -> str:
    """Return ``name`` if it is a valid name of a function.

    Raises:
        InvalidArgument: it is not.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"function name {name!r}: use 1 to {NAME_MAX} letters, digits, '_', '.' or '-', the first a letter or '_'"
        )
    return name


def check_options(concurrency: int, queue: int, cache_ttl_s: float) -> None:
    """Check the options for routing calls of a function.

    Raises:
        InvalidArgument: one is out of bounds.
    """
    if not 1 <= concurrency <= CONCURRENCY_MAX or not 0 <= queue <= 10 * CONCURRENCY_MAX:
        raise InvalidArgument(
            f"concurrency {concurrency} and queue {queue}: "
            f"1 to {CONCURRENCY_MAX} calls at once, up to {10 * CONCURRENCY_MAX} waiting"
        )
    if not 0 <= cache_ttl_s <= 86_400:
        raise InvalidArgument(f"cache_ttl {cache_ttl_s}: 0 to 86400 seconds")


def _check_config(config: Mapping[str, str]) -> None:
    """Check the contents of ``worker.config``.

    Raises:
        InvalidArgument: it has too many entries, or one is too long.
    """
    if not all(isinstance(text, str) for pair in config.items() for text in pair):
        raise InvalidArgument(f"config {dict(config)!r}: keys and values are texts")
    if sum(len(key) + len(value) for key, value in config.items()) > CONFIG_CHARS_MAX:
        raise InvalidArgument(f"config has more than {CONFIG_CHARS_MAX:,} characters; push a file for so much")
    for key, value in config.items():
        try:
            f"{key}{value}".encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"config {key!r}={value!r} cannot be encoded as UTF-8: {error}") from None


class FunctionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function as its bundle describes it (``function.json``).

    Attributes:
        name: what callers call it.
        entry: ``module:function`` of the bundle's app directory, or ``pickle:FILE`` there.
        idempotent: whether a call that may have run can be run again elsewhere.
        cache_ttl_s: seconds for which a result may be given again to the same user for the same arguments; 0: never.
        concurrency: how many calls may run at once in the pool.
        queue: how many further calls may wait.
        limits: of one call.
        requirements: the locked dependencies, ``name==version``.
        own_modules: names of the user's own modules that a pickle contains.
        config: the contents of ``worker.config``.
        isolation: ``call``: a process for each call; ``user``: one process serves calls of one user, one after another.
        process_calls: how many calls such a process serves at most.
        process_s: seconds from the first call of such a process to its last, at most.
        needs: labels that a worker must have to run the function, if it is deployed.
        platforms: tags of the platforms it can run on, each with the locked dependencies of that platform alone;
            empty: any platform.
        python: ``major.minor`` that the pickle was made with; empty: any.
        format: format number of this document.
    """

    name: str
    entry: str
    idempotent: bool = True
    cache_ttl_s: float = 0.0
    concurrency: int = 32
    queue: int = 256
    limits: Limits = Limits()
    requirements: tuple[str, ...] = ()
    own_modules: tuple[str, ...] = ()
    python: str = ""
    format: int = _FORMAT
    config: Mapping[str, str] = {}
    isolation: Literal["call", "user"] = "call"
    process_calls: int = 1000
    process_s: float = 300.0
    needs: Mapping[str, str] = {}
    platforms: Mapping[str, tuple[str, ...]] = {}

    def checked(self) -> FunctionSpec:
        """Return this specification if everything in it is within bounds.

        Raises:
            InvalidArgument: something is out of bounds; the text names it.
        """
        check_name(self.name)
        place, _, function = self.entry.partition(":")
        if not place or not function:
            raise InvalidArgument(f"entry {self.entry!r} is not module:function")
        check_options(self.concurrency, self.queue, self.cache_ttl_s)
        _check_config(self.config)
        check_labels(self.needs)
        if len(self.platforms) > PLATFORMS_MAX:
            raise InvalidArgument(f"{len(self.platforms)} platforms: at most {PLATFORMS_MAX} are allowed")
        for tag in self.platforms:
            Platform.of(tag)
        if self.isolation not in ("call", "user"):
            raise InvalidArgument(f"isolation {self.isolation!r}: there are 'call' and 'user'")
        if not 1 <= self.process_calls <= PROCESS_CALLS_MAX or not 0 < self.process_s <= PROCESS_S_MAX:
            raise InvalidArgument(
                f"process_calls {self.process_calls} and process_s {self.process_s}: "
                f"1 to {PROCESS_CALLS_MAX:,} calls, and up to {PROCESS_S_MAX:,} seconds"
            )
        for field in _LIMIT_FIELDS:
            value, most = getattr(self.limits, field), getattr(_POSSIBLE, field)
            if not 0 < value <= most:
                raise InvalidArgument(f"limit {field} is {value:,}: more than 0, at most {most:,.12g}")
        return self

    def within(self, allowed: Limits) -> FunctionSpec:
        """Return this specification if its limits do not exceed what an operator allows.

        Raises:
            InvalidArgument: a limit is exceeded; the text names it.
        """
        for field in _LIMIT_FIELDS:
            value, most = getattr(self.limits, field), getattr(allowed, field)
            if value > most:
                raise InvalidArgument(
                    f"function {self.name}: limit {field} is {value:,}, and at most {most:,} is allowed here; ask for "
                    "less, or have the operator allow more with --limits-max"
                )
        return self

    @property
    def keep(self) -> Keep | None:
        """How long its processes are kept; None: each serves one call."""
        return Keep(self.process_calls, self.process_s) if self.isolation == "user" else None

    def to_json(self) -> bytes:
        """Serialize to a document; the same specification gives the same bytes."""
        document = msgspec.to_builtins(self)
        for later in _LATER_FIELDS:
            if document[later] == getattr(_DEFAULTS, later):
                del document[later]
        return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=1)

    @classmethod
    def from_json(cls, document: bytes) -> FunctionSpec:
        """Read and check a document.

        Raises:
            FormatError: it is not such a document.
            InvalidArgument: something in it is out of bounds.
        """
        try:
            spec = _documents.decode(document)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise FormatError(f"this is not a function's document: {error}") from None
        if spec.format != _FORMAT:
            raise FormatError(f"the function's document has format {spec.format}, this software reads {_FORMAT}")
        return spec.checked()


_documents = msgspec.json.Decoder(FunctionSpec)
"""Built at import, which also prepares ``convert`` to ``Limits``: msgspec must not meet a type first in two threads."""


_LATER_FIELDS = ("config", "isolation", "process_calls", "process_s", "needs", "platforms")
"""Fields that are written only if set: without them, a function's bytes are as before, and old workers can read it."""
_DEFAULTS = FunctionSpec("unset", "unset:unset")
_OPTIONS = ("idempotent", "concurrency", "queue", "config", "isolation", "process_calls", "process_s", "needs")

_UNITS = {"": 1, "b": 1} | {
    name: size
    for letter, small, large in (("k", 10**3, 1 << 10), ("m", 10**6, 1 << 20), ("g", 10**9, 1 << 30))
    for name, size in ((letter, large), (f"{letter}b", small), (f"{letter}ib", large))
}
_BYTES_WITHOUT_UNIT_MIN = 64 << 10
"""Smaller numbers are probably mistakes: ``memory=512`` is likely meant in MiB."""
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)")
LIMIT_NAMES: Mapping[str, str] = {
    "memory": "memory_bytes",
    "cpu": "cpu_s",
    "wall": "wall_s",
    "threads": "threads",
    "disk": "disk_bytes",
    "files": "open_files",
    "output": "output_bytes",
    "result": "result_bytes",
}
"""The command line's names of limits, and the field of ``Limits`` for each."""


def spec_from_options(name: str, entry: str, options: Mapping[str, Any]) -> FunctionSpec:
    """Make a function's specification from the options given in a program.

    Raises:
        InvalidArgument: an option is unknown or out of bounds.
    """
    given = dict(options)
    limits = limits_of(given.pop("limits", None) or Limits())
    cache_ttl_s = given.pop("cache_ttl", 0.0)
    if unknown := set(given) - set(_OPTIONS):
        raise InvalidArgument(
            f"function {name!r}: there is no option {min(unknown)!r}; there are limits, cache_ttl, "
            + ", ".join(_OPTIONS)
        )
    try:
        return FunctionSpec(name=name, entry=entry, limits=limits, cache_ttl_s=cache_ttl_s, **given).checked()
    except (TypeError, AttributeError) as error:
        raise InvalidArgument(f"function {name!r}: {error}") from None


def limits_of(value: object) -> Limits:
    """Read limits given in a program: ``Limits``, or a mapping by its fields or by the command line's names.

    Raises:
        InvalidArgument: a limit is unknown, or not a number.
    """
    if isinstance(value, Limits):
        return value
    if not isinstance(value, Mapping):
        raise InvalidArgument(f'limits are a taskworker.Limits or a mapping as {{"wall_s": 5}}, not {value!r}')
    given = {LIMIT_NAMES.get(name, name): quantity for name, quantity in value.items()}
    if unknown := set(given) - set(_LIMIT_FIELDS):
        raise InvalidArgument(f"there is no limit {min(unknown)!r}; there are {', '.join(_LIMIT_FIELDS)}")
    try:
        return msgspec.convert(given, Limits)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"limits {dict(value)!r}: {error}") from None


def limits_from_text(text: str, unnamed: Limits | None = None) -> Limits:
    """Read limits in the command line's form, ``memory=128MiB,cpu=5,wall=60``; limits not named are as in ``unnamed``.

    Raises:
        InvalidArgument: a limit is unknown, or its value is not a quantity.
    """
    given: dict[str, Any] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, _, quantity = item.partition("=")
        field = LIMIT_NAMES.get(name.strip())
        matched = _QUANTITY.fullmatch(quantity.strip())
        if field is None:
            raise InvalidArgument(f"there is no limit {name!r}; there are {', '.join(LIMIT_NAMES)}")
        unit = matched.group(2).lower() if matched else ""
        if matched is None or (unit not in _UNITS if field.endswith("bytes") else unit not in ("", "s")):
            raise InvalidArgument(f"limit {item!r}: write for example memory=128MiB, cpu=5 (seconds), threads=8")
        if field.endswith("bytes") and not unit and float(matched.group(1)) < _BYTES_WITHOUT_UNIT_MIN:
            raise InvalidArgument(f"limit {item!r} has no unit: write {item.strip()}MiB, or {item.strip()}B for bytes")
        value = float(matched.group(1)) * (_UNITS[unit] if field.endswith("bytes") else 1)
        given[field] = value if field.endswith("_s") else int(value)
    return dataclasses.replace(unnamed or Limits(), **given)
