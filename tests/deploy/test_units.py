"""The units for systemd are ones that it takes, and start commands that there are."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs_build import commands

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
NAMES = ("taskworker-pool.service", "taskworker-worker@.service", "taskworker-s3.service", "taskworker-page.service")
EXPOSURE_MAX = {NAMES[0]: 20, NAMES[1]: 55, NAMES[2]: 20, NAMES[3]: 20}  # tenths, as `systemd-analyze security` says

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="SYSTEMD IS NOT INSTALLED, SO NO UNIT IS VERIFIED"
)


@pytest.mark.parametrize("name", NAMES)
@needs_systemd
def test_systemd_takes_the_unit(name: str, tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "taskworker"
    unit = tmp_path / name.replace("@", "@w1")
    unit.write_text((UNITS / name).read_text().replace("/opt/taskworker/bin/taskworker", str(program)))
    sockets = [shutil.copy(one, tmp_path) for one in UNITS.glob(f"{unit.stem}.socket")]
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit, *sockets], capture_output=True, text=True, check=False
    )
    about_it = [line for line in verified.stderr.splitlines() if Path(unit.name).stem in line]
    assert (verified.returncode, about_it) == (0, []), verified.stderr
    threshold = f"--threshold={EXPOSURE_MAX[name]}"
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", threshold, unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout[-200:]


@pytest.mark.parametrize("name", NAMES)
def test_the_unit_starts_a_command_with_options_that_there_are(name: str) -> None:
    (line,) = re.findall(r"^ExecStart=\S+ (.+)$", (UNITS / name).read_text(), re.MULTILINE)
    words = shlex.split(line)
    (described,) = (
        one for one in commands.commands() if line.startswith(f"{str(one.path).removeprefix('taskworker ')} --")
    )
    known = {option for one in described.options for option in one.opts}
    given = [word for word in words if word.startswith("--")]
    assert given
    assert set(given) <= known
