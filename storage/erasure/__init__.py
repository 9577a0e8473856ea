"""The (k, n) erasure code: zfec defines it, ISA-L computes the same bytes faster where it can be had."""

from storage.erasure.code import (
    Codec,
    ErasureCode,
    ErasureProfile,
    accelerator_name,
    code_for,
    code_for_key,
    profile_for,
)

__all__ = ["Codec", "ErasureCode", "ErasureProfile", "accelerator_name", "code_for", "code_for_key", "profile_for"]
