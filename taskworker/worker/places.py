"""Where workers, pools and standalone stores are kept if nobody says where."""

from __future__ import annotations

import os
from pathlib import Path


def default_store(worker_id: str) -> Path:
    """The default directory of a worker's store or volume."""
    data_home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data_home) / "taskworker" / worker_id
