"""Where workers find deployed bundles: as files of this user of the pool."""

DEPLOYED_OWNER = "taskworker:functions"
