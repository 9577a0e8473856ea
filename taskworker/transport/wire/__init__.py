"""The protocol below the shard transport: streams, frames, connections, and the server.

Nothing in it knows of shards: a call is a method number and bytes. ``docs/format.md`` specifies the frames.
"""
