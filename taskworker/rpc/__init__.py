"""gRPC at both ends: dialling, serving, status codes, limits, and protobuf messages ↔ the engine's own types.

Both the services and the client use it, so that each end reads what the other writes.
"""

from taskworker.rpc import forks as forks
