"""Files that the client encrypts with a key of its user's, so that a pool stores what it cannot read.

docs/format.md specifies the format ("Files sealed by their users"); docs/security.md says what it protects.
"""
