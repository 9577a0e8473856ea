"""What one user was told about their files, and whether the pool still says the same."""

from __future__ import annotations

from dataclasses import dataclass


class Wrong(Exception):
    """The pool shows something else than it acknowledged; the text says what."""


@dataclass(slots=True)
class Entry:
    """A file as it was acknowledged.

    Attributes:
        file_id: the file; empty while it is not known.
        content: of the head; None: there is no such file.
        version_id: of the head; empty while it is not known.
        doubtful: what an operation that ended without an answer may have made of it, None for a delete.
        in_doubt: whether there is such an operation.
    """

    file_id: str = ""
    content: bytes | None = None
    version_id: str = ""
    doubtful: bytes | None = None
    in_doubt: bool = False

    def acknowledge(self, file_id: str, version_id: str, content: bytes | None) -> None:
        """An operation has returned."""
        self.file_id, self.version_id, self.content = file_id, version_id, content
        self.doubtful, self.in_doubt = None, False

    def doubt(self, content: bytes | None) -> None:
        """An operation ended without an answer: it was carried out wholly or not at all."""
        self.doubtful, self.in_doubt = content, True

    def settle(self, file_id: str, version_id: str, found: bytes | None) -> None:
        """The pool shows this; what has been seen must stay.

        Raises:
            Wrong: it is neither what was acknowledged nor what is in doubt.
        """
        allowed = [self.content, self.doubtful] if self.in_doubt else [self.content]
        if found not in allowed:
            raise Wrong(f"{told(found)}, where {' or '.join(map(told, allowed))} is right")
        self.acknowledge(file_id, version_id, found)


def told(content: bytes | None) -> str:
    """Short words for a content."""
    return "no file" if content is None else f"{len(content)} bytes beginning with {content[:8].hex()}"
