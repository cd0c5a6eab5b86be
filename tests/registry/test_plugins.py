"""An installed package's implementations are found by their entry points."""

import os
import shutil
import subprocess
import sys
import tomllib

from tests.fixtures.folders import FIXTURES

_USE_PLUGIN = """
import torch
from blockyard import LMConfig, TransformerLM, list_attention, list_ffn, get_attention
from blockyard.errors import InputError
assert "cumulative_mean" in list_attention() and "scaled_tanh" in list_ffn(), list_attention()
model = TransformerLM(LMConfig(vocab_size=7, d_model=8, n_layers=2, n_heads=2,
                               blocks="cumulative_mean[strength=0.5]+scaled_tanh[scale=2]"))
assert model.layers[0].attn.strength == 0.5 and model.layers[0].ffn.scale == 2.0
ids = torch.randint(0, 7, (2, 5))
model(ids, targets=ids).loss.backward()
assert model.cost(5).parameters == sum(p.numel() for p in model.parameters())
try:
    get_attention("cumulative_mean", d_model=8, n_heads=2, strenth=1.0)
except InputError as error:
    assert "'strenth' (did you mean 'strength'?)" in str(error), error
else:
    raise SystemExit("a misspelt option of a plug-in passed")
print("plug-in works")
"""


def test_implementations_of_an_installed_package_are_found_by_entry_point(tmp_path):
    # Installed the way pip lays a package down: the module and its metadata side by side on the path.
    source = FIXTURES / "toy_plugin"
    shutil.copytree(source / "toy_mixers", tmp_path / "toy_mixers")
    info = tmp_path / "toy_mixers-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-mixers\nVersion: 0.1\n")
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    result = subprocess.run(
        [sys.executable, "-c", _USE_PLUGIN],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == "plug-in works", result.stderr
