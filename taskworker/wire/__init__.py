"""How things travel: protobuf messages, status codes and data frames ↔ the engine's own types.

Used by both ends, the services and the client, so that what one writes the other reads.
"""

from taskworker.wire import forks as forks
