"""Where workers find deployed bundles: as files of this user of the pool."""

DEPLOYED_OWNER = "taskworker:functions"

CANDIDATE_OWNER = "taskworker:candidates"
"""Likewise of this one, while they are tried."""
