"""Bounds on messages and pages, for both ends of the wire."""

from __future__ import annotations

from storage import CHUNK_SIZE_MAX

KIB = 1024
MIB = 1024 * KIB

# A unary message is held whole, several times over, at both ends. Larger files are streamed.
UNARY_BYTES_MAX = 64 * MIB

# What gRPC itself lets in. It refuses with a text of its own that cannot be replaced, so it lets in
# twice the limit: whoever is over by less than that gets the text that says what to do instead.
TRANSPORT_BYTES_MAX = 2 * UNARY_BYTES_MAX

# One message of a stream must hold a patch of the largest chunk and its frame.
PART_BYTES_MAX = CHUNK_SIZE_MAX + 64 * KIB

# Data per message of a push: loopback gRPC moves 1 MiB messages as fast as larger ones and twice as fast
# as 64 KiB ones, and the engine takes a message that is a whole chunk as it is, without a copy.
PUSH_DATA_BYTES = MIB

# Data per message of a get: 1.9 GB/s, where messages of 1 MiB made 1.5 GB/s and of 256 KiB 1.4 GB/s.
GET_DATA_BYTES = 512 * KIB

# Ids take 34 bytes on the wire: this many fit well into gRPC's default message limit of 4 MiB.
CHUNK_IDS_MAX = 16384

# Files deleted by one call: one transaction, during which no push commits, and 0.1 s.
DELETE_MAX = 1000

# A version takes at most 6 KiB on the wire, mostly note and filename; 500 fit into 4 MiB too.
PAGE_MAX = 500

# Of lines of a log that are asked for, as the message has them.
TAIL_MAX = (1 << 32) - 1

# gRPC drops a call whose headers exceed 8 KiB. A text is percent-encoded there, three bytes for one.
STATUS_TEXT_BYTES_MAX = 1000

# gRPC would let a stream's receive window grow with the bandwidth it measures, to hundreds of MiB on a
# busy loopback: eight pushes took 1.7 GiB that way, and 0.2 GiB at the same speed with a fixed window.
# 4 MiB still fill a 40 MB/s line with a round trip of 100 ms.
WINDOW_OPTIONS = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4 * MIB))

# A connection has this long to come about. gRPC takes it from its least pause between two tries: with 100 ms
# nobody was reached over a line with a round trip of 50 ms, nor on a machine with more to do than it can.
# Where a connection is refused, the next try comes as soon as ever.
CONNECT_TIMEOUT_MS = 3_000
