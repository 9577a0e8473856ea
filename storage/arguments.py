"""Checks the arguments of the public classes in one place, before a method does anything.

Python does not check types: with ``time_ms=time.time() * 1000``, a float would be written into a version's record, and
nobody could read that record again. :func:`checked` looks up a rule for each parameter of a method, by its name, when
the class is defined. It fails then if there is no rule, so that no parameter is forgotten.
"""

from __future__ import annotations

import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from storage.diff.manifest_diff import ManifestDiff, Patch
from storage.erasure import ErasureProfile
from storage.errors import InvalidArgument
from storage.limits import (
    FILE_SIZE_MAX,
    PARTS_MAX,
    SMALL_COPIES_BYTES_MAX,
    as_int,
    check_attributes,
    check_chunk_ids,
    check_chunk_size,
    check_filename,
    check_note,
    check_sha256,
    check_time_ms,
    check_user_id,
    shown,
    utf8,
)
from storage.sealing.master_keys import MasterKeys

P = ParamSpec("P")
SelfT = TypeVar("SelfT")
ResultT = TypeVar("ResultT")

Rule = Callable[[Any], Any]
"""Returns the value to use, or raises InvalidArgument."""

_ID_CHARACTERS_MAX = 1024  # of a text that is looked up as an id; real ids have 32 or 64


def checked(
    method: Callable[Concatenate[SelfT, P], ResultT], /, rules: Mapping[str, Rule] | None = None
) -> Callable[Concatenate[SelfT, P], ResultT]:
    """The method, with its arguments checked before it runs.

    Args:
        method: a method of a public class.
        rules: further rules by parameter name, beside :data:`RULES`.
    """
    parameters = list(inspect.signature(method).parameters.values())[1:]
    known = {**RULES, **(rules or {})}
    by_name = {parameter.name: _rule_of(parameter, known) for parameter in parameters}
    in_order = tuple(by_name.values())

    @wraps(method)
    def at_the_door(self: SelfT, /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        positional: Any = [rule(value) for rule, value in zip(in_order, args, strict=False)]
        for name, value in kwargs.items():
            if name in by_name:  # Python itself refuses the others
                kwargs[name] = by_name[name](value)
        rest: Any = args[len(positional) :]
        return method(self, *positional, *rest, **kwargs)

    return at_the_door


def _rule_of(parameter: inspect.Parameter, rules: Mapping[str, Rule]) -> Rule:
    rule = rules.get(parameter.name)
    if rule is None:
        raise TypeError(f"there is no rule for arguments called {parameter.name!r}; add one")
    return _or_none(rule) if "None" in str(parameter.annotation) else rule


def _or_none(rule: Rule) -> Rule:
    return lambda value: None if value is None else rule(value)


def text(what: str) -> Rule:
    """Text that UTF-8 can encode."""

    def rule(value: Any) -> str:
        utf8(value, what)
        return _plain(value)

    return rule


def _plain(value: str) -> str:
    return value if type(value) is str else str.__str__(value)  # msgspec cannot encode subclasses, such as numpy's


def _same_text(check: Callable[[str], object]) -> Rule:
    def rule(value: Any) -> str:
        check(value)
        return _plain(value)

    return rule


def identifier(what: str) -> Rule:
    """Text that is looked up as an id. If it cannot be an id, the method reports that it is not found."""

    def rule(value: Any) -> str:
        if not isinstance(value, str):
            raise InvalidArgument(f"{what} must be text, not {type(value).__name__}")
        return _plain(value[:_ID_CHARACTERS_MAX])

    return rule


def whole_number(what: str, least: int, most: int = FILE_SIZE_MAX) -> Rule:
    """An integer in a range. Floats, even whole ones, and bools are refused."""

    def rule(value: Any) -> int:
        number = as_int(value, what)
        if not least <= number <= most:
            raise InvalidArgument(f"{what} is {shown(number)}, outside {least}…{most}")
        return number

    return rule


def seconds(what: str) -> Rule:
    """A finite number of seconds, 0 or more."""

    def rule(value: Any) -> float:
        number = math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            with suppress(OverflowError):  # an int beyond any float
                number = float(value)
        if not math.isfinite(number) or number < 0:
            raise InvalidArgument(f"{what} must be a number of seconds, 0 or more, not {shown(value)}")
        return number

    return rule


def instance(kind: type, what: str) -> Rule:
    """An object of a class."""

    def rule(value: Any) -> Any:
        if not isinstance(value, kind):
            raise InvalidArgument(f"{what} must be a {kind.__name__}, not {type(value).__name__}")
        return value

    return rule


def function(what: str) -> Rule:
    """Something that can be called."""

    def rule(value: Any) -> Any:
        if not callable(value):
            raise InvalidArgument(f"{what} must be a function, not {type(value).__name__}")
        return value

    return rule


def anything(value: Any) -> Any:
    """Any value: the code that uses it checks it."""
    return value


def path(value: Any) -> Any:
    """A path as text, or a path object."""
    if not isinstance(value, str | os.PathLike):
        raise InvalidArgument(f"a path must be text or a Path, not {type(value).__name__}")
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:
        raise InvalidArgument("a path has characters that no file name can have (lone surrogates)") from None
    except TypeError as error:  # an os.PathLike whose __fspath__ returns something else
        raise InvalidArgument(f"a path must be text or a Path: {error}") from None
    if b"\0" in encoded:
        raise InvalidArgument("a path contains a NUL character; remove it")
    return os.fsdecode(encoded)


def path_or_object(value: Any) -> Any:
    """A valid path, or another object to read from or write to, which the code that uses it checks."""
    return path(value) if isinstance(value, str | os.PathLike) else value


def _paths(value: Any) -> list[Any]:
    if isinstance(value, str | bytes | os.PathLike) or not isinstance(value, Sequence):
        raise InvalidArgument(f"volumes must be a list of paths, not {type(value).__name__}")
    return [path(one) for one in value]


def _file_ids(value: Any) -> list[str]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidArgument(f"file_ids must be a list of ids, not {type(value).__name__}")
    return [identifier("a file id")(one) for one in value]


def _iterable(what: str) -> Rule:
    """Something to iterate over, but not a text, whose characters would be the items."""

    def rule(value: Any) -> Any:
        if isinstance(value, str | bytes | os.PathLike) or not isinstance(value, Iterable):
            raise InvalidArgument(f"{what} must be an iterable such as a list, not {type(value).__name__}")
        return value

    return rule


def _sha256(value: Any) -> str:
    check_sha256(value)
    return _plain(value)


def _time_ms(value: Any) -> int:
    return check_time_ms(value)


def _attributes(value: Any) -> Any:
    """Attributes, or a function that returns them; what it returns is checked later."""
    return value if callable(value) and not isinstance(value, Mapping) else check_attributes(value)


def _names(value: Any) -> list[str]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidArgument(f"with_attributes must be a list of names, not {type(value).__name__}")
    return [text("the name of an attribute")(one) for one in value]


def _parts(value: Any) -> list[tuple[str, str | None]]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or len(value) > PARTS_MAX:
        raise InvalidArgument(f"parts must be a list of up to {PARTS_MAX:,} pairs of a file id and a version id")
    return [_part(one) for one in value]


def _part(value: Any) -> tuple[str, str | None]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise InvalidArgument("a part is a pair (tuple) of a file id, and a version id or None")
    file_id, version_id = value
    return identifier("a file id")(file_id), None if version_id is None else identifier("a version id")(version_id)


def _chunk_size(value: Any) -> int:
    return check_chunk_size(value)


def _diff(value: Any) -> ManifestDiff:
    """A diff whose parts have the right types; their values are checked against its base later."""
    diff: ManifestDiff = instance(ManifestDiff, "diff")(value)
    identifier("base_version_id of the diff")(diff.base_version_id)
    for what, number in (("new_size", diff.new_size), ("chunk_size", diff.chunk_size)):
        if type(number) is not int:
            raise InvalidArgument(f"{what} of the diff must be a whole number (int), not {type(number).__name__}")
        whole_number(f"{what} of the diff", 0)(number)
    if not isinstance(diff.patches, Sequence):
        raise InvalidArgument(f"patches of the diff must be a tuple, not {type(diff.patches).__name__}")
    patches = tuple(_patch(patch) for patch in diff.patches)
    unchanged = type(diff.patches) is tuple and all(map(operator.is_, patches, diff.patches))
    return diff if unchanged else replace(diff, patches=patches)


_patch_index = whole_number("the index of a patch", 0)  # made once, as a diff may have a million patches


def _patch(patch: Any) -> Patch:
    """The patch with a private copy of its data, so that nobody can change it between check and write."""
    if not isinstance(patch, Patch) or type(patch.index) is not int or not isinstance(patch.chunk_id, bytes):
        raise InvalidArgument("a patch has an index (int), a chunk_id (bytes) and data (bytes, or None)")
    _patch_index(patch.index)
    if patch.data is not None and not isinstance(patch.data, bytes | bytearray | memoryview):
        raise InvalidArgument(f"patch {patch.index}: data must be bytes, not {type(patch.data).__name__}")
    if patch.data is None or type(patch.data) is bytes:
        return patch
    return replace(patch, data=memoryview(patch.data).tobytes())


def _key(value: Any) -> Any:
    """A key: its bytes, a key file, or keys; the file is read later."""
    if isinstance(value, bytes | str | os.PathLike | MasterKeys):
        return value
    raise InvalidArgument(f"key is {type(value).__name__}; give the 32 bytes of a key, or the path of a key file")


RULES: Mapping[str, Rule] = {
    "path": path,
    "volumes": _paths,
    "create": instance(bool, "create"),
    "key": _key,
    "volume_options": anything,
    "runtime": anything,
    "source": path_or_object,  # storage.write.sources and taskworker.client.sources know what can be pushed
    "filename": _same_text(check_filename),
    "after": _same_text(check_filename),
    "user_id": _same_text(check_user_id),
    "note": _same_text(check_note),
    "attributes": _attributes,
    "parts": _parts,
    "if_absent": instance(bool, "if_absent"),
    "if_head": identifier("if_head"),
    "delimiter": text("delimiter"),
    "hidden": text("hidden"),
    "with_attributes": _names,
    "prefix": text("prefix"),
    "file_id": identifier("file_id"),
    "file_ids": _file_ids,
    "files": _iterable("files"),
    "file": text("file"),
    "by_name": instance(bool, "by_name"),
    "bytes_max": whole_number("bytes_max", 0),
    "version_id": identifier("version_id"),
    "base_version_id": identifier("base_version_id"),
    "have_version_id": identifier("have_version_id"),
    "before": identifier("before"),
    "sha256": _sha256,
    "profile": instance(ErasureProfile, "profile"),
    "chunk_size": _chunk_size,
    "small_copies_bytes": whole_number("small_copies_bytes", 0, SMALL_COPIES_BYTES_MAX),
    "chunk_ids": check_chunk_ids,
    "time_ms": _time_ms,
    "size_hint": whole_number("size_hint", 0, 1 << 63),
    "data_bytes_max": whole_number("data_bytes_max", 0),
    "start": whole_number("start", 0),
    "stop": whole_number("stop", 0),
    "limit": whole_number("limit", 0, 1 << 63),
    "diff": _diff,
    "grace_s": seconds("grace_s"),
    "resume_s": seconds("resume_s"),
    "within_s": seconds("within_s"),
    "progress": function("progress"),
    "pace": function("pace"),
    "watch": function("watch"),
}
"""Rules for parameters by name; a name means the same in all public classes."""
