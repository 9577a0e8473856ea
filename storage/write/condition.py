"""Conditions of a push on what the name has: nothing, or a certain version."""

from __future__ import annotations

from dataclasses import dataclass

from storage.catalog import Catalog, FileEntry
from storage.errors import ConflictError, FileNotFound, InvalidArgument
from storage.keys import ID_BYTES


@dataclass(frozen=True, slots=True)
class Condition:
    """What must be so when a push is committed.

    Attributes:
        head: the id of the version that must be the head; None: there must be no file of the name.
    """

    head: bytes | None

    def require(self, filename: str, entry: FileEntry | None) -> None:
        """Check the condition.

        Args:
            filename: the name to which something is pushed.
            entry: the entry of the file of this name; None if there is none.

        Raises:
            ConflictError: there is a file, or its head is another one.
            FileNotFound: there is no file.
        """
        if entry is None:
            if self.head is not None:
                raise FileNotFound(f"there is no file {filename!r}, of which {self.head.hex()} should be the head")
        elif self.head is None:
            raise ConflictError(
                f"there is a file {filename!r} already; its head is {entry.head.hex()}", head=entry.head.hex()
            )
        elif self.head != entry.head:
            raise ConflictError(
                f"the head of {filename!r} is {entry.head.hex()}, and not {self.head.hex()}",
                head=entry.head.hex(),
                base=self.head.hex(),
            )


def condition_of(*, if_absent: bool, if_head: str | None) -> Condition | None:
    """The condition that a caller has set; None if there is none.

    Raises:
        InvalidArgument: there are two, or ``if_head`` is no version id.
    """
    if not if_absent and if_head is None:
        return None
    if if_absent and if_head is not None:
        raise InvalidArgument("if_absent and if_head contradict each other; give one of them")
    try:
        head = None if if_head is None else bytes.fromhex(if_head)
    except ValueError:
        head = b""
    if head is not None and len(head) != ID_BYTES:
        raise InvalidArgument("if_head must be a version id, 64 hexadecimal digits")
    return Condition(head)


def require_now(condition: Condition, filename: str, name: bytes, catalog: Catalog) -> None:
    """Check a condition before a push begins, so that nothing is sent in vain; the commit checks it again.

    Raises:
        ConflictError, FileNotFound: see :meth:`Condition.require`.
    """
    file_id = catalog.find(name)
    condition.require(filename, None if file_id is None else catalog.file(file_id))
