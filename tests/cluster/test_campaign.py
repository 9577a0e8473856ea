"""The campaigns run, and say what they found."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.campaign
def test_a_scenario_comes_to_its_verdict() -> None:
    command = [sys.executable, "-m", "tests.cluster", "kill-workers", "--rounds", "1", "--seed", "5"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "kill-workers: all 4 checks hold" in ended.stdout


def test_clients_take_the_small_chunks_of_a_campaign() -> None:
    """Clients check the size of chunks before they connect."""
    program = (
        "from tests.cluster.campaign.small_chunks import CHUNK_BYTES, lower_bound; lower_bound()\n"
        "from storage.errors import InvalidArgument, StorageError\n"
        "from taskworker import Client\n"
        "for size in (CHUNK_BYTES, CHUNK_BYTES - 1):\n"
        "    try:\n"
        "        Client('127.0.0.1:1', timeout_s=0.1).push(b'x', filename='f', user_id='u', chunk_size=size)\n"
        "    except StorageError as error:\n"
        "        print(size, isinstance(error, InvalidArgument))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("64 False\n63 True\n", "")
