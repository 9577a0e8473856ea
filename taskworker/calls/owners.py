"""The user who owns the files of deployed bundles in the pool; workers fetch them from there."""

DEPLOYED_OWNER = "taskworker:functions"

CANDIDATE_OWNER = "taskworker:candidates"
"""The user who owns bundles while they are tried out, before they are deployed."""
