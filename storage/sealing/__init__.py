"""Encryption at rest: the keys of a store and its users, and what is sealed with them.

A master key, which is kept outside the store, seals the users' keys. A user's key of one epoch gives every chunk, node
and version a key of its own, so no key ever encrypts two messages. The algorithms are AES-256-GCM and keyed BLAKE3.
"""
