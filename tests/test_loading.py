"""A pool starts without what only requests to outside APIs need."""

from __future__ import annotations

import subprocess
import sys


def test_a_pool_loads_no_http_client_before_the_first_request() -> None:
    program = "import sys, taskworker.apps.pool_server; print({'httpx', 'hishel', 'rich'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded == "set()\n"
