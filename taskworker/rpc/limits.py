"""Bounds on messages and pages, for both ends of the wire."""

from __future__ import annotations

from storage import CHUNK_SIZE_MAX

KIB = 1024
MIB = 1024 * KIB

# By default, a message that is no part of a stream: gRPC's own default, so clients of any language can receive answers.
# Both ends hold several copies of it. Larger files are streamed.
UNARY_BYTES_MAX = 4 * MIB
CALL_BYTES_MAX = 8 * MIB  # a call of a function: the arguments may have 2^20 characters, of four bytes each
UNARY_BYTES_MOST = 64 * MIB  # what an operator may allow

# What a client accepts of a server: the largest message that any server may be told to send.
ANSWER_BYTES_MAX = 2 * UNARY_BYTES_MOST

# One message of a stream must hold a patch with the largest chunk, and its framing.
PART_BYTES_MAX = CHUNK_SIZE_MAX + 64 * KIB


def transport_bytes_max(unary_bytes_max: int) -> int:
    """The limit for gRPC, which ends calls with larger messages before it reads them, with a text of its own.

    A message that is too large by less than that is read, and refused with our text, which says what to do instead.
    """
    return max(PART_BYTES_MAX * 3 // 2, 2 * unary_bytes_max)


# Data per message of a push: loopback gRPC moves 1 MiB messages as fast as larger ones and twice as fast
# as 64 KiB ones, and the engine stores a message that is a whole chunk without copying it.
PUSH_DATA_BYTES = MIB

# Data per message of a get: 1.9 GB/s, where messages of 1 MiB made 1.5 GB/s and of 256 KiB 1.4 GB/s.
GET_DATA_BYTES = 512 * KIB

# Files up to this size are returned in one message with their version: as much as one message of a push carries.
GET_FILE_BYTES_MAX = MIB

# Files that are returned in one message as several callers want them at the same time, and the size of each. All are
# read before anything is sent.
GET_FILES_MAX = 64
GET_FILES_BYTES_MAX = 64 * KIB

# Messages of a push of many files, or of one small file, have about 1 MiB at most. A message may hold many tiny files,
# each of which takes far more memory than its bytes, so it may not be as large as others.
MANY_BYTES_MAX = 2 * MIB

# Files in one message of a call on many files. Their results take 1 MiB or so.
FILES_MAX = 4096

# Ids take 34 bytes on the wire: this many fit easily into gRPC's default message limit of 4 MiB.
CHUNK_IDS_MAX = 16384

# Files deleted by one call. It takes one transaction of 0.1 s, during which no push can commit.
DELETE_MAX = 1000

# A version takes at most 6 KiB on the wire, mostly note and filename; 500 fit into 4 MiB too. Attributes come on top,
# and shorten the page.
PAGE_MAX = 500

# Log lines returned by one call.
TAIL_MAX = (1 << 32) - 1

# gRPC drops a call whose headers exceed 8 KiB. Texts are percent-encoded there, up to three bytes for one.
STATUS_TEXT_BYTES_MAX = 1000

# By default, gRPC lets a stream's receive window grow with the measured bandwidth, to hundreds of MiB on a
# busy loopback: eight pushes took 1.7 GiB that way, and 0.2 GiB at the same speed with a fixed window.
# 4 MiB are enough to fill a 40 MB/s line with a round trip of 100 ms.
WINDOW_OPTIONS = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4 * MIB))

# Time for establishing a connection. gRPC uses its minimum backoff for this: with 100 ms, no connection came
# about over a line with a round trip of 50 ms, nor on an overloaded machine. After a refused connection, the
# next attempt is made just as early.
CONNECT_TIMEOUT_MS = 3_000
