"""The command shred, on an embedded store."""

from __future__ import annotations

import base64
import os

from tests.cli.conftest import Cli, embedded  # noqa: F401 - fixtures


def test_what_was_deleted_is_shredded(embedded: Cli) -> None:  # noqa: F811
    former, later = (base64.b64encode(os.urandom(32)) for _ in range(2))
    key = embedded.write("key", former + b"\n")
    key.chmod(0o600)
    for name in ("kept", "doomed"):
        embedded.write(name, name.encode())
        embedded.run("push", name, "--key-file", "key")
    embedded.run("rm", "doomed", "--yes", "--key-file", "key")
    said = embedded.text("shred", "--key-file", "key")
    assert "those of 1 version kept" in said
    assert "replace the key" in said
    assert embedded.json("shred", "--key-file", "key") == {"versions": 1, "keys": 1, "secrets": 1}
    key.write_bytes(later + b"\n" + former + b"\n")
    embedded.run("ls", "--key-file", "key")
    key.write_bytes(later + b"\n")
    assert embedded.text("get", "kept", "-o", "-", "--key-file", "key") == "kept"


def test_a_store_that_does_not_encrypt_has_nothing_to_shred(embedded: Cli) -> None:  # noqa: F811
    embedded.write("f", b"")
    embedded.run("push", "f")
    assert "does not encrypt" in embedded.error("shred", code=2)
