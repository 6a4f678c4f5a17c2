"""What the checks of deploy/ share: the tree, the binary, and Debian's and PyPI's tools."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "support"))
from ports import free_port  # noqa: E402, F401: for the tests

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
FANFOLD = pathlib.Path(os.environ["FANFOLD_BIN"]).resolve()


def tool(name: str) -> str:
    """A program: beside this Python, or installed. It is never done without."""
    beside = pathlib.Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is missing: tests/run deploy installs it"
    return found


def run(*command, **options) -> subprocess.CompletedProcess:
    """Runs a program; its output is shown when it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def check(tmp_path):
    """`fanfold check` of a file, with variables and in an empty directory."""

    def check(path, env=None):
        return run(FANFOLD, "check", "--config", path, cwd=tmp_path, env={"PATH": os.environ["PATH"], **(env or {})})

    return check
