"""What examples/ holds runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from blockyard.registry.pattern import parse_choice, split_choices
from tests.fixtures.folders import ROOT


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(script: Path):
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_demo_names_blocks_that_exist():
    demo = yaml.safe_load((ROOT / "examples" / "demo.yaml").read_text())
    assert len([parse_choice(choice) for choice in split_choices(demo["blocks"])]) == 6
