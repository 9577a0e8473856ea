"""The accelerator: ISA-L's vectorised GF(2^8) matrix product, fed with zfec's own matrix.

Both libraries use the field with polynomial 0x11d, so the same matrix gives the same bytes. The
library is taken from the ``pyeclib`` wheel, or from the system (Debian: ``libisal2``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from storage.erasure.codec import CodecUnavailable
from storage.erasure.isal_functions import ffi
from storage.erasure.profile import ErasureProfile
from storage.erasure.zfec_codec import ZfecCodec
from storage.limits import BytesLike

_DECODE_TABLES_MAX = 512  # 4-of-6 has 15 survivor sets; wide codes must not grow without bound


class IsalCodec:
    """ISA-L computing zfec's code. Calls release the GIL.

    Raises:
        CodecUnavailable: the shared library is not to be had, or lacks the functions.
    """

    name = "isa-l"

    def __init__(self, profile: ErasureProfile, reference: ZfecCodec) -> None:
        self._library = _load()
        self._k, self._n = profile.k, profile.n
        self._parity_rows = profile.n - profile.k
        self._parity_tables = self._tables(b"".join(reference.parity_matrix()), self._parity_rows)
        self._reference = reference
        self._decode_tables = lru_cache(maxsize=_DECODE_TABLES_MAX)(self._make_decode_tables)

    def encode(self, data: BytesLike, shard_length: int, parity: memoryview) -> None:
        """See :class:`storage.erasure.codec.Codec`."""
        source = ffi.from_buffer("unsigned char[]", data)
        target = ffi.from_buffer("unsigned char[]", parity, require_writable=True)
        blocks = ffi.new("unsigned char *[]", [source + i * shard_length for i in range(self._k)])
        rows = ffi.new("unsigned char *[]", [target + i * shard_length for i in range(self._parity_rows)])
        self._library.ec_encode_data(shard_length, self._k, self._parity_rows, self._parity_tables, blocks, rows)

    def decode(
        self, blocks: Sequence[memoryview], slots: Sequence[int], wanted: Sequence[int], out: Sequence[memoryview]
    ) -> None:
        """See :class:`storage.erasure.codec.Codec`."""
        order = sorted(range(len(slots)), key=slots.__getitem__)
        tables = self._decode_tables(tuple(slots[i] for i in order), tuple(wanted))
        sources = [ffi.from_buffer("unsigned char[]", blocks[i]) for i in order]
        targets = [ffi.from_buffer("unsigned char[]", block, require_writable=True) for block in out]
        self._library.ec_encode_data(
            len(blocks[0]),
            self._k,
            len(wanted),
            tables,
            ffi.new("unsigned char *[]", sources),
            ffi.new("unsigned char *[]", targets),
        )

    def _make_decode_tables(self, slots: tuple[int, ...], wanted: tuple[int, ...]) -> Any:
        matrix = self._reference.decode_matrix(slots)
        return self._tables(b"".join(matrix[slot] for slot in wanted), len(wanted))

    def _tables(self, matrix: bytes, rows: int) -> Any:
        tables = ffi.new("unsigned char[]", max(1, 32 * self._k * rows))
        self._library.ec_init_tables(self._k, rows, ffi.from_buffer("unsigned char[]", matrix), tables)
        return tables


@lru_cache(maxsize=1)
def _load() -> Any:
    for candidate in _candidates():
        try:
            library: Any = ffi.dlopen(candidate)
            _ = (library.ec_init_tables, library.ec_encode_data)
        except (OSError, AttributeError):
            continue
        return library
    raise CodecUnavailable("no ISA-L library found; install pyeclib's wheel or libisal2")


def _candidates() -> list[str]:
    found: list[str] = []
    spec = importlib.util.find_spec("pyeclib")
    for place in (spec.submodule_search_locations or []) if spec else []:
        found += sorted(str(path) for path in Path(place).parent.glob("pyeclib.libs/libisal*.so*"))
    # By its name, not through ctypes.util.find_library: that runs ldconfig and a compiler.
    return [*found, "libisal.so.2"]
