"""A report of the user's files, made every so often by a function of the pool.

``python periodic_report.py --every 60`` deploys the function, and calls it until Ctrl-C.
"""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path

from taskworker.inside import worker


def report(prefix: str = "") -> dict[str, object]:
    """Store ``report.md``, a new version each time: how many files there are, and which are the largest."""
    files = [file for file in worker.storage.list(prefix) if file.filename != "report.md"]
    files.sort(key=lambda file: file.size, reverse=True)
    lines = [
        f"# Files, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
        "",
        f"{len(files)} files, {sum(file.size for file in files):,} bytes. The largest:",
        "",
        *(f"- {file.filename}: {file.size:,} bytes" for file in files[:10]),
    ]
    stored = worker.storage.push("\n".join(lines).encode(), "report.md")
    return {"files": len(files), "version": stored.version_id}


def main() -> None:
    """Deploy the report and call it until interrupted."""
    import getpass
    import os  # which the function, whose module this is, could not import

    from taskworker import Client
    from taskworker.calls.spec import FunctionSpec
    from taskworker.client.functions import FunctionClient
    from taskworker.functions.packing.modules import pack_module

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=float, default=60.0, help="seconds")
    parser.add_argument("--times", type=int, default=0, help="how often; 0: until Ctrl-C")
    options = parser.parse_args()
    address = os.environ.get("TASKWORKER_POOL", "127.0.0.1:50051")
    user = os.environ.get("TASKWORKER_USER") or getpass.getuser()

    entry = f"{Path(__file__).stem}:report"
    packed = pack_module(entry, FunctionSpec(name="report", entry=entry), root=Path(__file__).parent)
    with FunctionClient(address) as functions:
        functions.deploy(packed.bundle, user_id=user)
    with Client(address) as client:
        count = 0
        while not options.times or count < options.times:
            told = client.call("report", user_id=user, timeout_s=30)
            print(f"report.md is version {told['version'][:12]}, of {told['files']} files", flush=True)
            count += 1
            time.sleep(options.every if count != options.times else 0)


if __name__ == "__main__":
    main()
