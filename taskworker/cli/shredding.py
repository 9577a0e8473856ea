"""The command that shreds deleted files: shred."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskworker.cli.documents import document
from taskworker.cli.session import Session
from taskworker.cli.text import plural

if TYPE_CHECKING:
    from storage.reports import ShredReport


def shred(session: Session) -> None:
    """Destroy what opens deleted files and versions, so that nobody can read what is left of them, on whichever disk.

    This is for all that was deleted so far and was encrypted by this release or a later one. What other files and
    versions have as well stays readable there. Names and sizes are in old copies of the catalog.

    A pool's master key is replaced as well, since old disks have what was destroyed sealed with the former one: destroy
    all copies of that, such as recovery keys, and export the new one. Snapshots of the pool's directory that were made
    before are of no use afterwards. If this is interrupted, run it again.

    To replace the key of a store, put a new line above the old one in the key file, run any command on the store, and
    then remove the old line, and all copies of it.

    Examples:
        taskworker rm plans.pdf
        taskworker shred
        taskworker shred --store ./data --key-file ./key
    """
    if session.is_embedded():
        with session.embedded() as store:
            report = store.shred()
        session.terminal.result(
            document(report),
            _line(report),
            "now replace the key in the key file, and destroy all copies of the former one",
        )
        return
    from taskworker.client.pool import PoolClient
    from taskworker.client.secrets import SecretClient

    with PoolClient(session.pool_address()) as client:
        report = client.shred()
    session.terminal.note(_line(report))
    with SecretClient(session.pool_address()) as secrets:
        key_id = secrets.rotate_master_key().key_id
    session.terminal.result(
        document(report) | {"master_key_id": key_id},
        f"what was deleted is shredded, and the master key replaced by {key_id}",
        "destroy all copies of the former master key, and make one of the new: taskworker secret export-key",
    )


def _line(report: ShredReport) -> str:
    kept = plural(report.versions, "version")
    return f"the secrets of all versions that were deleted are destroyed, and those of {kept} kept"
