"""What a function is deployed as, under the name that programs have had for it; it is in ``taskworker.bundles``."""

from taskworker.bundles.spec import FunctionSpec

__all__ = ["FunctionSpec"]
