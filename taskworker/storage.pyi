"""The engine, under the name that no other module can shadow; see ``taskworker.engine_names``."""

from storage import *  # noqa: F403 - all of them are meant
from storage import __all__ as __all__
