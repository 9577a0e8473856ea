"""The users who own the files of bundles in the pool."""

from taskworker.auth.rights import CANDIDATE_OWNER as CANDIDATE_OWNER

DEPLOYED_OWNER = "taskworker:functions"
"""The user who owns deployed bundles; workers fetch them from there."""
