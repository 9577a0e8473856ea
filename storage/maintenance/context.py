"""The parts of a store that maintenance works with."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from storage.catalog import Catalog
from storage.formats.sealed_nodes import VersionReader
from storage.maintenance.walks import Walks
from storage.runtime import Runtime
from storage.stripes.stripes import StripeStore
from storage.write.pins import Pins, Readings
from storage.write.registry import Uploads


@dataclass(frozen=True, slots=True)
class MaintenanceContext:
    """A store as scrub, repair and collect see it. ``scratch`` is a directory for their temporary files."""

    catalog: Catalog
    stripes: StripeStore
    pins: Pins
    uploads: Uploads
    readings: Readings
    versions: VersionReader
    metadata_copies: int
    scratch: Path
    runtime: Runtime
    walks: Walks
    collecting: threading.Lock = field(default_factory=threading.Lock)
