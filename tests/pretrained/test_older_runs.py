"""Runs from before these options existed go on as they were."""

from __future__ import annotations

import json
import re

from blockyard.tasks.run import load_run, train
from blockyard.training.checkpoint import STATE_SUM, state_digest


def test_a_run_that_does_not_name_the_new_options_is_resumed(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox\n" * 60)
    small = {"d_model": 8, "n_layers": 1, "n_heads": 1, "context": 8}
    groups = {
        "model": small,
        "data": {"path": str(text), "cache_dir": str(tmp_path)},
        "train": {"steps": 2, "batch_size": 2, "eval_batches": 1, "compile": "off", "progress": False, "threads": 1},
    }
    out = train(groups, tmp_path / "run", task="lm")
    config = out / "config.yaml"
    new = r"  (norm_eps|parallel: false|rope_scaling|init)\b.*\n"
    older, count = re.subn(new, "", config.read_text())
    assert count == 4
    config.write_text(older)
    for state in out.glob("checkpoints/*/state.json"):
        content = json.loads(state.read_text())
        for name in ("norm_eps", "parallel", "rope_scaling"):
            del content["config"]["model"][name]
        del content["config"]["train"]["init"], content[STATE_SUM]
        state.write_text(json.dumps({**content, STATE_SUM: state_digest(content)}))
    longer = {**groups, "train": {**groups["train"], "steps": 4}}
    capsys.readouterr()
    train(longer, out, resume=True, task="lm")
    assert "does not say" not in capsys.readouterr().err
    assert load_run(out).model.config.norm_eps == 1e-5
