"""Bugs planted in how an embedded store handles errors of its machine. Its simulation must find them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from storage.errors import StoreFull
from storage.fleet.volumes import VolumeSet
from storage.shards import CorruptShard, LocalVolume
from storage.shards.condition import Condition
from storage.shards.identity import VolumeIdentity, read_identity

Patch = pytest.MonkeyPatch


def take_refusals_for_rot(patch: Patch) -> None:
    """Reading: data that cannot be read now counts as rotten."""
    patch.setattr(Condition, "unreadable", lambda condition, error: CorruptShard(str(error)))


def take_refusals_for_dead_disks(patch: Patch) -> None:
    """Volumes: a volume that was offline once is never tried again."""
    patch.setattr(VolumeSet, "reattach", lambda volumes: [])
    patch.setattr(VolumeSet, "revive", lambda volumes: False)


def accept_swapped_volumes(patch: Patch) -> None:
    """Volumes: any volume found at a path is accepted as the one that belongs there."""

    def identify(volumes: VolumeSet, slot: int) -> VolumeIdentity | None:
        path = volumes.paths[slot]
        return read_identity(path) if path.is_dir() else None

    patch.setattr(VolumeSet, "_identify", identify)


def let_a_full_volume_refuse_for_all(patch: Patch) -> None:
    """Volumes: a push fails as soon as one volume has no space."""
    missed = VolumeSet._missed

    def refused(volumes: VolumeSet, slot: int, volume: LocalVolume, error: Any) -> None:
        if isinstance(error, StoreFull):
            raise error
        missed(volumes, slot, volume, error)

    patch.setattr(VolumeSet, "_missed", refused)


def count_what_a_full_volume_refused(patch: Patch) -> None:
    """Volumes: data for which a volume had no space counts as written."""
    missed = VolumeSet._missed

    def refused(volumes: VolumeSet, slot: int, volume: LocalVolume, error: Any) -> None:
        if not isinstance(error, StoreFull):
            missed(volumes, slot, volume, error)

    patch.setattr(VolumeSet, "_missed", refused)


EMBEDDED_MUTATIONS: tuple[Callable[[Patch], None], ...] = (
    take_refusals_for_rot,
    take_refusals_for_dead_disks,
    accept_swapped_volumes,
    let_a_full_volume_refuse_for_all,
    count_what_a_full_volume_refused,
)
