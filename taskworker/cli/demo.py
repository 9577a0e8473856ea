"""The command demo."""

from __future__ import annotations

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.session import Session


def demo(session: Session) -> None:
    """Show a pool of six workers at work: two are killed, every byte is read back, and the pool repairs itself.

    Everything happens in a temporary directory that is removed afterwards.

    Examples:
        taskworker demo
    """
    if session.settings.store or session.settings.pool:
        raise Failure("the demo makes a pool of its own: leave out --store and --pool", ExitCode.USAGE)
    import os
    import tempfile
    from pathlib import Path

    from taskworker.cli.demo_steps import Demo

    with tempfile.TemporaryDirectory(prefix="taskworker-demo-") as directory:
        os.environ["XDG_CONFIG_HOME"] = directory  # the context of this pool is of no use afterwards
        Demo(Path(directory)).run()
