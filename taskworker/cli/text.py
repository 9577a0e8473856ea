"""How commands show values to people. See :mod:`taskworker.readable`."""

from __future__ import annotations

from taskworker.readable import duration_text as duration_text
from taskworker.readable import harmless as harmless
from taskworker.readable import json_text as json_text
from taskworker.readable import one_line as one_line
from taskworker.readable import pace_text as pace_text
from taskworker.readable import plural as plural
from taskworker.readable import size_text as size_text
from taskworker.readable import time_text as time_text
from taskworker.readable import visible as visible
