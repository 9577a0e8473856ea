"""For the code of functions: ``from taskworker.inside import worker``.

Inside a call, ``worker.storage`` has the files of the calling user, ``worker.call`` calls other functions,
``worker.get_secret`` gives secrets that the function is granted, and ``worker.call_external_api`` calls outside APIs.
Outside a call, this import works, so that a module of functions can be imported and tested, but the methods raise.
"""

from __future__ import annotations

from taskworker.sandbox.inside.api import HTTPStatusError, Response
from taskworker.sandbox.inside.facade import StoredFile, WorkerError, worker

__all__ = ["HTTPStatusError", "Response", "StoredFile", "WorkerError", "worker"]
