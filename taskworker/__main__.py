"""``python -m taskworker`` is the command line."""

from __future__ import annotations

from taskworker.cli import main

if __name__ == "__main__":
    main()
