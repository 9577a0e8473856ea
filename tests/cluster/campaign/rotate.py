"""Keys, certificates and their authority change while users push and get; then thieves take disks and the catalog."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from taskworker.client.secrets import SecretClient
from taskworker.client.users import UserClient
from tests.cluster.campaign.run import Run
from tests.cluster.campaign.users import Users
from tests.cluster.hosts.planted import CONTENT, found_in
from tests.cluster.processes import WAIT_S, Cluster

_USERS = 2
_CERTIFICATE_HOURS = 0.05
_PLANTED = {
    "content": CONTENT,
    "a file's name": "planted-file-name",
    "a version's note": "planted-note-of-a-version",
    "a user's name": "planted-user-name",
    "a secret's value": "planted-value-of-a-secret",
}
_LOGS = ("audit", "calls")
_STEPS = ("add-next", "promote", "drop-former")


def rotate(run: Run) -> None:
    """Rotate everything that can be rotated, over and over, for N seconds."""
    verdicts = run.verdicts
    os.environ["XDG_CONFIG_HOME"] = str(run.directory / "config")
    options = ("--tls", "--certificate-hours", str(_CERTIFICATE_HOURS))
    with Cluster(run.directory, options=options, joins=True) as cluster:
        _plant(cluster)
        with (
            Users(cluster.address, _USERS, run.seed, run.directory) as users,
            UserClient(cluster.address) as operator,
            SecretClient(cluster.address) as secrets,
        ):
            first = _certificates(cluster)
            users.resume()
            began_s, rounds, masters = time.monotonic(), 0, 0
            while rounds == 0 or time.monotonic() < began_s + run.rounds:
                for step in _STEPS:
                    operator.change_authority(step)
                    _await(lambda: not operator.authorities().waiting)
                    secrets.rotate_master_key()
                    masters += 1
                    time.sleep(2)
                rounds += 1
                verdicts.progress(f"{rounds} authorities, {masters} master keys")
            users.pause()
            users.verify()
            account = users.account
            verdicts.note(f"{account}; the longest call {account.longest_s:.1f} s")
            verdicts.errors(
                f"errors while the authority was replaced {rounds} times, the master key {masters} times",
                account.errors,
            )
            expired = [name for name, (until, _) in first.items() if until < datetime.now(UTC)]
            renewed = [name for name, one in _certificates(cluster).items() if one != first[name]]
            verdicts.check(
                "workers whose first certificates have expired, and that have new ones",
                f"{len(expired)}, {len(renewed)} of {len(first)}",
                holds=len(expired) == len(renewed) == len(first),
            )
            suspected = [event.text for event in cluster.status().events if event.kind in ("suspect", "lost", "left")]
            verdicts.errors("workers suspected meanwhile", suspected)
        scrubbed = cluster.client.scrub()
        bad = scrubbed.missing + scrubbed.rotten
        verdicts.check("shards missing or rotten", f"{bad} of {scrubbed.shards_checked:,}", holds=not bad)
        _steal(run, cluster)


def _plant(cluster: Cluster) -> None:
    content = CONTENT.encode() * 100_000
    name, note, user = (_PLANTED[each] for each in ("a file's name", "a version's note", "a user's name"))
    cluster.client.push(content, filename=name, note=note, user_id=user)
    cluster.client.push(content[:5_000], filename=f"{name}-2", note=note, user_id=user)
    with SecretClient(cluster.address) as secrets:
        secrets.set("secret", _PLANTED["a secret's value"])


def _steal(run: Run, cluster: Cluster) -> None:
    """Look into workers' disks, and into the pool's directory without its keys."""
    words = {what: word.encode() for what, word in _PLANTED.items()}
    disks = [text for name in cluster.workers for text in found_in(run.directory / name, words)]
    run.verdicts.errors("planted words on workers' disks", disks)
    pool = run.directory / "pool"
    keys = {pool / "master.key", pool / "authority.pem"}
    found = {
        path.relative_to(pool): found_in(path, words)
        for path in sorted(pool.rglob("*"))
        if path.is_file() and path not in keys
    }
    sealed = [text for path, texts in found.items() if path.parts[0] not in _LOGS for text in texts]
    run.verdicts.errors("planted words in the pool's directory without its keys and logs", sealed)
    logged = {text.partition(" in ")[0] for path, texts in found.items() if path.parts[0] in _LOGS for text in texts}
    run.verdicts.errors("content, notes and secrets in its logs", sorted(logged - {"a user's name", "a file's name"}))
    run.verdicts.note(f"in its logs, which are not encrypted: {', '.join(sorted(logged)) or 'no planted words'}")


def _certificates(cluster: Cluster) -> dict[str, tuple[datetime, int]]:
    return {name: _certificate(cluster.directory / name / "member.json") for name in cluster.workers}


def _certificate(path: Path) -> tuple[datetime, int]:
    pem = json.loads(path.read_bytes())["certificate"]
    certificate = x509.load_pem_x509_certificate(pem.encode())
    return certificate.not_valid_after_utc, certificate.serial_number


def _await(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 3 * WAIT_S
    while not condition():
        assert time.monotonic() < give_up_at, "workers have not learned of a new authority"
        time.sleep(0.2)
