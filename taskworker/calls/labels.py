"""Labels of workers, such as ``gpu=none``, and the labels that a function needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from storage.errors import InvalidArgument

LABELS_MAX = 32
_PART = re.compile(r"[A-Za-z0-9_./-]{1,64}")


def check_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return ``labels`` if a worker can have them.

    Raises:
        InvalidArgument: there are too many, or one is not a valid label.
    """
    if len(labels) > LABELS_MAX:
        raise InvalidArgument(f"{len(labels)} labels: at most {LABELS_MAX} are allowed")
    for key, value in labels.items():
        if not _PART.fullmatch(key) or not _PART.fullmatch(value):
            raise InvalidArgument(
                f"label {key!r}={value!r}: key and value are 1 to 64 letters, digits, '_', '.', '/' or '-'"
            )
    return labels


def labels_from_texts(texts: Iterable[str]) -> dict[str, str]:
    """Read labels from the command line's form, ``KEY=VALUE`` each.

    Raises:
        InvalidArgument: one is not a label, or two contradict each other.
    """
    labels: dict[str, str] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if labels.get(key, value) != value:
            raise InvalidArgument(
                f"label {key!r} is given twice, as {labels[key]!r} and as {value!r}: give one of them"
            )
        labels[key] = value
    check_labels(labels)
    return labels


def meets(labels: Mapping[str, str], needs: Mapping[str, str]) -> bool:
    """Whether a worker with these labels has all labels that are needed."""
    return all(labels.get(key) == value for key, value in needs.items())


def lacking(labels: Mapping[str, str], needs: Mapping[str, str]) -> str:
    """What a worker with these labels lacks, such as ``lacks gpu=none (it has zone=a)``; empty: nothing."""
    missing = {key: value for key, value in needs.items() if labels.get(key) != value}
    if not missing:
        return ""
    return f"lacks {text_of(missing)} (it has {text_of(labels) or 'no labels'})"


def text_of(labels: Mapping[str, str]) -> str:
    """Labels as text, such as ``gpu=none, zone=a``."""
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
