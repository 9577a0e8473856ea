"""The (k, n) erasure code: zfec defines it, ISA-L computes the same bytes faster where it can be had."""

from storage.erasure.code import ErasureCode, accelerator_name, code_for, code_for_key
from storage.erasure.codec import Codec
from storage.erasure.profile import ErasureProfile, profile_for

__all__ = ["Codec", "ErasureCode", "ErasureProfile", "accelerator_name", "code_for", "code_for_key", "profile_for"]
