"""The model of a user's files: every version that was acknowledged, and what calls without an answer may have done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.cluster.campaign.ledger import Wrong, told


@dataclass(frozen=True, slots=True)
class Kept:
    """One version and its content."""

    version_id: str
    content: bytes


@dataclass(slots=True)
class History:
    """A file: its id and its versions, oldest first; there is at least one."""

    file_id: str
    versions: list[Kept]

    @property
    def head(self) -> Kept:
        """The newest version."""
        return self.versions[-1]

    @property
    def ids(self) -> list[str]:
        """The ids of all versions, oldest first."""
        return [version.version_id for version in self.versions]


@dataclass(frozen=True, slots=True)
class Doubt:
    """What a call that ended without an answer may have done to a file, wholly or not at all.

    Attributes:
        appended: the content of a version that it may have added.
        removed: the id of a version that it may have deleted.
        deleted: whether it may have deleted the file.
    """

    appended: bytes | None = None
    removed: str | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """A file as the pool shows it: its id, the ids of its versions, oldest first, and the content of the newest."""

    file_id: str
    ids: Sequence[str]
    head: bytes


@dataclass(slots=True)
class Files:
    """The files of one user, by name.

    Attributes:
        histories: the files that there are.
        doubts: names whose last call had no answer; they must be settled before anything else is done to them.
        deleted: ids of files that must not be found any more.
        removed: file and version ids of versions that must not be found any more.
    """

    histories: dict[str, History] = field(default_factory=dict)
    doubts: dict[str, Doubt] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    removed: list[tuple[str, str]] = field(default_factory=list)

    def certain(self) -> list[str]:
        """The names of files without a doubt, in order."""
        return sorted(self.histories.keys() - self.doubts.keys())

    def append(self, name: str, file_id: str, version_id: str, content: bytes) -> None:
        """A version was stored; the id of the newest version again means that nothing had changed.

        Raises:
            Wrong: the file has another id than before, or the version is one of its former ones or has other bytes.
        """
        history = self.histories.get(name)
        if history is None:
            self.histories[name] = History(file_id, [Kept(version_id, content)])
            return
        if history.file_id != file_id:
            raise Wrong(f"the file's id changed from {history.file_id} to {file_id}")
        if version_id == history.head.version_id:
            if content != history.head.content:
                raise Wrong(f"told to be unchanged: {told(content)}, where {told(history.head.content)} was the newest")
        elif version_id in history.ids:
            raise Wrong(f"a former version's id was given to {told(content)}")
        else:
            history.versions.append(Kept(version_id, content))

    def delete(self, name: str) -> None:
        """A file was deleted with all its versions."""
        self.deleted.append(self.histories.pop(name).file_id)

    def remove(self, name: str, version_id: str) -> None:
        """A version was deleted; the file too if it was the last one."""
        history = self.histories[name]
        history.versions = [version for version in history.versions if version.version_id != version_id]
        self.removed.append((history.file_id, version_id))
        if not history.versions:
            self.delete(name)

    def settle(self, name: str, shown: Shown | None) -> None:
        """Find out what the call in doubt did, from what the pool shows.

        Raises:
            Wrong: the pool shows neither what was acknowledged nor what the call may have made of it.
        """
        doubt = self.doubts.pop(name)
        history = self.histories.get(name)
        ids = history.ids if history else []
        if shown is None:
            if history is None:
                return
            if doubt.deleted or ids == [doubt.removed]:
                self.delete(name)
                return
            raise Wrong(f"the file is gone, with {len(ids)} versions")
        if list(shown.ids) == ids:
            assert history is not None
            if shown.head != history.head.content:
                raise Wrong(f"{told(shown.head)}, where {told(history.head.content)} is right")
        elif list(shown.ids[:-1]) == ids and shown.head == doubt.appended:
            self.append(name, shown.file_id, shown.ids[-1], shown.head)
        elif doubt.removed is not None and list(shown.ids) == [each for each in ids if each != doubt.removed]:
            self.remove(name, doubt.removed)
        else:
            raise Wrong(f"versions {list(shown.ids)} with {told(shown.head)} at the head, where there were {ids}")

    def adopt(self, name: str, history: History | None) -> None:
        """Take over what the pool shows, after that was told to be wrong: the next error shall be another one."""
        self.doubts.pop(name, None)
        if history is None:
            self.histories.pop(name, None)
        else:
            self.histories[name] = history
