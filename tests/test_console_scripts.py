"""The commands that are installed: ours, whatever lies in the working folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from trainer_data import LONG_SECONDS, ROOT, environment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("name", ["shardkit", "shardkit-train"])
def test_an_installed_command_is_ours_though_the_working_folder_has_a_module_of_its_name(
    tmp_path: Path, name: str
) -> None:
    module, _, function = SCRIPTS[name].partition(":")
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    script = tmp_path / "bin" / name  # as pip writes it
    script.write_text(
        f"import sys\nfrom {module} import {function}\nif __name__ == '__main__':\n    sys.exit({function}())\n"
    )
    for shadow in ("trainer.py", "shardkit.py"):
        (tmp_path / "work" / shadow).write_text("raise SystemExit('another one ran')\n")
    done = subprocess.run(
        [sys.executable, script, "--help"],
        env=environment(),
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        timeout=LONG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"Usage: {name} ")


def test_the_commands_are_these_two() -> None:
    assert set(SCRIPTS) == {"shardkit", "shardkit-train"}
