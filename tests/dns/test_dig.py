"""What people use: dig."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from taskworker.outbound.dns.directory import Host, Listing
from tests.dns.conftest import Served

pytestmark = pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed (Debian: dnsutils)")


def dig(served: Served, *arguments: str) -> str:
    host, port = served.where
    command = ["dig", f"@{host}", "-p", str(port), "+tries=1", "+time=10", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.mark.parametrize("over", ["+notcp", "+tcp"])
def test_dig(served: Served, over: str) -> None:
    served.pool.now = Listing(workers=(Host("worker_001", "127.0.0.1:50052"),))
    served.outside.set("www.example 300 A 198.41.0.4")
    assert dig(served, over, "+short", "worker_001.worker.hive", "SRV") == "0 0 50052 worker_001.worker.hive.\n"
    assert dig(served, over, "+short", "www.example") == "198.41.0.4\n"
    told = dig(served, over, "absent.worker.hive")
    assert "status: NXDOMAIN" in told
    assert "flags: qr aa rd ra" in told
    assert "SOA" in told
    assert "WARNING" not in told
    assert "malformed" not in told


def test_dig_comes_again_over_tcp_after_truncation(served: Served) -> None:
    served.outside.set(*(f"many.example 300 A 198.41.{number}.4" for number in range(100)))
    assert "Truncated, retrying in TCP mode" in dig(served, "many.example")
    assert "Truncated" not in dig(served, "+noedns", "www.example")
    assert "198.41.99.4" in dig(served, "+short", "many.example").split()


def test_dig_sees_why(served: Served) -> None:
    served.outside.set("evil.example 300 A 127.0.0.1")
    told = dig(served, "evil.example")
    assert "status: REFUSED" in told
    assert "EDE: 17 (Filtered)" in told
