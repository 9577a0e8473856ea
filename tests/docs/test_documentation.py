"""What the tutorial and the how-to pages show works as it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import DOCS, steps
from tests.docs.reader import Reader

HOW_TO = (
    "how-to/processes-and-machines.md",
    "how-to/files-and-folders.md",
    "how-to/folders.md",
    "how-to/data-tools.md",
    "how-to/s3.md",
    "how-to/page.md",
    "how-to/disk-swap.md",
    "how-to/disaster-recovery.md",
    "how-to/backup.md",
    "how-to/upgrade.md",
    "how-to/monitoring.md",
    "how-to/services.md",
    "how-to/mount.md",
    "how-to/measure.md",
    "how-to/containers.md",
    "how-to/kubernetes.md",
)
"""In the order in which one reader can follow them, with one pool."""
ON_MACHINES = "how-to/three-machines.md"
"""Followed in ``tests/cluster/test_hosts.py``."""
REMARKS = ("not run: ", "in background: ", "exit code: ")


def test_tutorial(tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        reader.follow("tutorial.md")


def test_how_to_pages(tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        for page in HOW_TO:
            reader.follow(page)


@pytest.mark.parametrize("page", sorted(str(path.relative_to(DOCS)) for path in (DOCS / "how-to").glob("*.md")))
def test_every_page_with_blocks_is_followed(page: str) -> None:
    assert page in (*HOW_TO, ON_MACHINES) or not list(steps(page))


@pytest.mark.parametrize("page", ["tutorial.md", *HOW_TO])
def test_no_block_escapes(page: str) -> None:
    """Each is run, or says why not, and no remark is misspelt."""
    for step in steps(page):
        if step.language:
            assert step.language in ("console", "python"), step.place
            assert step.remark in ("", "until it matches") or step.remark.startswith(REMARKS), step.place
            assert step.remark != "not run: ", step.place
