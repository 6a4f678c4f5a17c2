"""The README's examples in Python, run as they stand there against the demo."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[3] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```\n```text output\n(.*?)^```$", README.read_text(), re.M | re.S)


def test_every_example_shows_what_it_prints():
    assert len(EXAMPLES) == README.read_text().count("\n```python\n") > 0


@pytest.mark.parametrize("example, shown", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_prints_what_is_shown(example, shown):
    here = example.replace("http://127.0.0.1:4100", os.environ["DEMO_URL"])
    assert here != example, "it asks the demo"
    ran = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True, timeout=50)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == shown
