"""Rules of a bucket's lifecycle: what they may say, and which objects they are about."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias
from xml.etree.ElementTree import Element

from cachetools import LRUCache

from taskworker.gateways.s3.documents import Node, needed, number_in, text_of
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.metadata import TAGS_MAX, checked_tags
from taskworker.gateways.s3.names import KEY_BYTES_MAX
from taskworker.gateways.s3.times import DAY_MS

RULES_MAX = 1000
_DAYS_MAX = 36_500
_ID_MAX = 255
_NEWER_MAX = 100
_SIZE_MAX = 1 << 60
_ENABLED = "Enabled"
_PARTS = frozenset(
    (
        *("ID", "Prefix", "Filter", "Status", "Expiration", "NoncurrentVersionExpiration"),
        "AbortIncompleteMultipartUpload",
    )
)
_ACTIONS = ("Expiration", "NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload")
_SIZES = ("ObjectSizeGreaterThan", "ObjectSizeLessThan")
_STORAGE_CLASSES = ("Transition", "NoncurrentVersionTransition")
_PARSED_MAX = 20_000
"""Rules that are remembered, of all buckets together; each bucket counts for a hundred, as rules may be long."""
_Parsed: TypeAlias = tuple[tuple[Mapping[str, Any], ...], "list[Rule]"]
_parsed: LRUCache[int, _Parsed] = LRUCache(_PARSED_MAX, getsizeof=lambda parsed: len(parsed[0]) + 100)
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that is enabled.

    Attributes:
        id: its name.
        prefix: it is about objects whose keys begin with this.
        tags: and that have these tags.
        above: and that have more bytes.
        below: and that have less bytes; None: any number.
        days: objects expire so many days after they were put; None: never.
        date_ms: objects expire at this time, in milliseconds since 1970; None: never.
        cleans_markers: delete markers that hide nothing are removed.
        noncurrent_days: former versions expire so many days after the next one was put; None: never.
        newer_noncurrent: but so many former versions of each object stay.
        abort_days: uploads in parts are aborted so many days after they began; None: never.
    """

    id: str
    prefix: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    above: int = -1
    below: int | None = None
    days: int | None = None
    date_ms: int | None = None
    cleans_markers: bool = False
    noncurrent_days: int | None = None
    newer_noncurrent: int = 0
    abort_days: int | None = None

    def fits(self, key: str, size: int, tags: Mapping[str, str]) -> bool:
        """Whether the rule is about such an object."""
        return (
            key.startswith(self.prefix)
            and size > self.above
            and (self.below is None or size < self.below)
            and all(tags.get(name) == value for name, value in self.tags.items())
        )

    def expires_ms(self, put_ms: int) -> int | None:
        """When an object expires that was put at this time, in milliseconds since 1970; None: never."""
        return self.date_ms if self.days is None else after_days(put_ms, self.days)


def after_days(since_ms: int, days: int) -> int:
    """The first midnight (UTC) that is later by more than so many days, in milliseconds since 1970."""
    return ((since_ms // DAY_MS) + days + 1) * DAY_MS


def enabled(rules: tuple[Mapping[str, Any], ...]) -> list[Rule]:
    """The rules that are enabled, of those that are kept. What makes no sense is left out: it expires nothing.

    Those of a bucket are remembered, as each of its replies needs them. Do not change the list.
    """
    with _lock:
        kept, found = _parsed.get(id(rules), ((), []))
        if kept is rules:
            return found
    found = _enabled(rules)
    with _lock, contextlib.suppress(ValueError):  # too many
        _parsed[id(rules)] = rules, found  # which are held, so that nothing else has their id meanwhile
    return found


def _enabled(rules: Iterable[Mapping[str, Any]]) -> list[Rule]:
    found = []
    for kept in rules:
        try:
            if kept["Status"] == _ENABLED:
                found.append(_rule(kept))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            continue
    return found


def _rule(kept: Mapping[str, Any]) -> Rule:
    filtered = kept.get("Filter", {})
    about = filtered.get("And", filtered)
    tags = {str(tag["Key"]): str(tag["Value"]) for tag in _listed(about.get("Tag", []))}
    expiration, noncurrent = kept.get("Expiration", {}), kept.get("NoncurrentVersionExpiration", {})
    upload, date = kept.get("AbortIncompleteMultipartUpload", {}), expiration.get("Date")
    return Rule(
        str(kept["ID"]),
        str(about.get("Prefix", kept.get("Prefix", ""))),
        tags,
        int(about.get("ObjectSizeGreaterThan", -1)),
        _positive(about.get("ObjectSizeLessThan"), _SIZE_MAX),
        _positive(expiration.get("Days")),
        None if date is None else _date_ms(str(date)),
        expiration.get("ExpiredObjectDeleteMarker") is True,
        _positive(noncurrent.get("NoncurrentDays")),
        int(noncurrent.get("NewerNoncurrentVersions", 0)),
        _positive(upload.get("DaysAfterInitiation")),
    )


def _listed(one_or_more: Any) -> list[Any]:
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]


def _positive(value: Any, most: int = _DAYS_MAX) -> int | None:
    if value is None:
        return None
    if not 1 <= int(value) <= most:
        raise ValueError(value)
    return int(value)


# -- documents ----------------------------------------------------------------------------------------


def rules_in(root: Element) -> list[dict[str, Any]]:
    """The rules of a document, checked, as they are kept and shown again.

    Raises:
        S3Error: a rule says nothing that S3 knows, or what is not supported.
    """
    elements = root.findall("Rule")
    if not 1 <= len(elements) <= RULES_MAX:
        raise S3Error("MalformedXML", f"there must be from 1 to {RULES_MAX} rules")
    rules = [_checked(one) for one in elements]
    if len({rule["ID"] for rule in rules}) < len(rules):
        raise S3Error("InvalidArgument", "two rules have the same ID", ArgumentName="ID")
    return rules


def rule_node(kept: Mapping[str, Any]) -> Node:
    """A rule that is kept, as an element."""
    return ("Rule", _nodes(kept))


def _nodes(kept: Mapping[str, Any]) -> list[Node]:
    nodes: list[Node] = []
    for name, content in kept.items():
        nodes += ((name, _nodes(one) if isinstance(one, Mapping) else one) for one in _listed(content))
    return nodes


def _checked(element: Element) -> dict[str, Any]:
    names = [child.tag for child in element]
    if any(name in _STORAGE_CLASSES for name in names):
        raise S3Error("NotImplemented", "there are no storage classes that objects could move to")
    _check_children(element, _PARTS)
    rule: dict[str, Any] = {"ID": text_of(element, "ID") or secrets.token_hex(16)}
    if len(rule["ID"]) > _ID_MAX:
        raise S3Error("InvalidArgument", f"the ID of a rule may have at most {_ID_MAX} characters", ArgumentName="ID")
    if ("Prefix" in names) == ("Filter" in names):
        raise S3Error("MalformedXML", "a rule needs either Filter or Prefix")
    if "Prefix" in names:
        rule["Prefix"] = _prefix(needed(element, "Prefix"))
    filtered = element.find("Filter")
    if filtered is not None:
        rule["Filter"] = _filter(filtered)
    rule["Status"] = needed(element, "Status")
    if rule["Status"] not in (_ENABLED, "Disabled"):
        raise S3Error("MalformedXML", "the Status of a rule must be Enabled or Disabled")
    for name, read in zip(_ACTIONS, (_expiration, _noncurrent, _abort), strict=True):
        action = element.find(name)
        if action is not None:
            rule[name] = read(action)
    if not any(name in rule for name in _ACTIONS):
        raise S3Error("InvalidRequest", f"a rule needs one of {', '.join(_ACTIONS)}")
    _check_together(rule)
    return rule


def _check_together(rule: Mapping[str, Any]) -> None:
    filtered = rule.get("Filter", {})
    about = filtered.get("And", filtered)
    if not any(name in about for name in ("Tag", *_SIZES)):
        return
    if "AbortIncompleteMultipartUpload" in rule:
        raise S3Error("InvalidRequest", "uploads have no tags and no size that a rule with this action could filter by")
    if "ExpiredObjectDeleteMarker" in rule.get("Expiration", {}):
        raise S3Error("InvalidRequest", "delete markers have no tags and no size that their rule could filter by")


def _check_children(element: Element, known: Iterable[str], repeated: str = "") -> None:
    names = [child.tag for child in element]
    for name in names:
        if name not in known:
            raise S3Error("MalformedXML", f"{element.tag} has an element {name[:40]}, which S3 does not know there")
        if name != repeated and names.count(name) > 1:
            raise S3Error("MalformedXML", f"{element.tag} has {name} twice")


def _filter(element: Element) -> dict[str, Any]:
    _check_children(element, ("Prefix", "Tag", "And", *_SIZES))
    if len(element) > 1:
        raise S3Error("MalformedXML", "a Filter has one condition; several are within And")
    both = element.find("And")
    if both is None:
        return _conditions(element, lists_tags=False)
    _check_children(both, ("Prefix", "Tag", *_SIZES), "Tag")
    return {"And": _conditions(both, lists_tags=True)}


def _conditions(element: Element, *, lists_tags: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (prefix := text_of(element, "Prefix")) is not None:
        found["Prefix"] = _prefix(prefix)
    pairs = [(needed(tag, "Key"), needed(tag, "Value")) for tag in element.findall("Tag")]
    tags: list[dict[str, str]] = [
        {"Key": name, "Value": value} for name, value in checked_tags(pairs, TAGS_MAX).items()
    ]
    if tags:
        found["Tag"] = tags if lists_tags else tags[0]
    for name in _SIZES:
        if (text := text_of(element, name)) is not None:
            found[name] = number_in(text, name, int(name == _SIZES[1]), _SIZE_MAX)
    if found.get(_SIZES[0], -1) + 1 >= found.get(_SIZES[1], _SIZE_MAX):
        raise S3Error("InvalidRequest", f"{_SIZES[1]} must be larger than {_SIZES[0]}, with a size between them")
    return found


def _expiration(element: Element) -> dict[str, Any]:
    _check_children(element, ("Days", "Date", "ExpiredObjectDeleteMarker"))
    if len(element) != 1:
        raise S3Error("MalformedXML", "Expiration needs one of Days, Date and ExpiredObjectDeleteMarker")
    if (days := text_of(element, "Days")) is not None:
        return {"Days": number_in(days, "Days", 1, _DAYS_MAX)}
    if (date := text_of(element, "Date")) is not None:
        try:
            midnight_ms = _date_ms(date.strip())
        except (ValueError, OverflowError):
            raise S3Error("MalformedXML", "Date must have the form 2030-01-31T00:00:00Z") from None
        if midnight_ms % DAY_MS:
            raise S3Error("InvalidArgument", "Date must be at midnight GMT", ArgumentName="Date")
        return {"Date": f"{datetime.fromtimestamp(midnight_ms // 1000, UTC):%Y-%m-%dT00:00:00Z}"}
    told = needed(element, "ExpiredObjectDeleteMarker").strip().lower()
    if told not in ("true", "false"):
        raise S3Error("MalformedXML", "ExpiredObjectDeleteMarker must be true or false")
    return {"ExpiredObjectDeleteMarker": told == "true"}


def _noncurrent(element: Element) -> dict[str, Any]:
    _check_children(element, ("NoncurrentDays", "NewerNoncurrentVersions"))
    found = {"NoncurrentDays": number_in(needed(element, "NoncurrentDays"), "NoncurrentDays", 1, _DAYS_MAX)}
    if (text := text_of(element, "NewerNoncurrentVersions")) is not None:
        found["NewerNoncurrentVersions"] = number_in(text, "NewerNoncurrentVersions", 1, _NEWER_MAX)
    return found


def _abort(element: Element) -> dict[str, Any]:
    _check_children(element, ("DaysAfterInitiation",))
    days = needed(element, "DaysAfterInitiation")
    return {"DaysAfterInitiation": number_in(days, "DaysAfterInitiation", 1, _DAYS_MAX)}


def _prefix(text: str) -> str:
    if len(text.encode("utf-8", "surrogatepass")) > KEY_BYTES_MAX:
        raise S3Error("InvalidRequest", f"a prefix may have at most {KEY_BYTES_MAX} bytes")
    return text


def _date_ms(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
