"""The parts of a store that writing uses."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field

from storage.activity import Activity
from storage.budget import Budget
from storage.catalog import Catalog
from storage.limits import MIB
from storage.runtime import Runtime
from storage.stripes.contents import Contents, Scratch
from storage.stripes.stripes import StripeStore
from storage.write.commit import GroupCommit
from storage.write.opened import Opened
from storage.write.pins import Pins
from storage.write.quotas import Quotas
from storage.write.registry import Uploads

IN_FLIGHT_BYTES_ALL = 32 * MIB  # for all uploads together: two chunks of the largest size


@dataclass(frozen=True, slots=True)
class PushContext:
    """The parts of a store that uploads and revisions use."""

    catalog: Catalog
    stripes: StripeStore
    contents: Contents
    pins: Pins
    uploads: Uploads
    commits: GroupCommit
    workers: Executor
    flusher: Executor
    committer: Executor
    metadata_copies: int
    runtime: Runtime
    activity: Activity
    quotas: Quotas
    in_flight: Budget = field(default_factory=lambda: Budget(IN_FLIGHT_BYTES_ALL))
    scratch: Scratch = field(default_factory=Scratch)
    opened: Opened = field(default_factory=Opened)
