"""Pictures of vein runs and of the search: what is read, what is refused, and that a picture comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockyard.errors import InputError
from blockyard.tasks.run import train_lm
from vein_pictures import main, pareto, scheduled, search_points, vein_curves

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("veins")
    (folder / "text.txt").write_text("the vein runs under the yard; " * 120)
    groups = {
        "data": {"path": str(folder / "text.txt"), "cache_dir": str(folder / "cache")},
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 16, "pattern": "tva+vft"},
        "vft": {"metrics": True, "tau": 0.9},
        "train": {
            "vein_taus": (0.9, 0.5),
            "steps": 4,
            "batch_size": 2,
            "eval_batches": 1,
            "log_every": 2,
            "progress": False,
            "compile": "off",
        },
    }
    return train_lm(groups, folder / "run")


def result(part: str, name: str, seed: int, loss: float, parameters: int) -> dict:
    row = {"part": part, "name": name, "seed": seed, "val_loss": loss, "block_parameters": parameters}
    return row | {"cache_bytes": 512, "step_seconds": [0.02], "steps": 10}


def test_a_run_with_metrics_has_every_layers_error_rank_and_share_over_tau(run):
    curves = vein_curves(run)
    assert set(curves) == {"eps_mean", "effective_rank", "eps_frac_over_tau"}
    for panel in curves.values():
        assert {layer: steps for layer, (steps, _) in panel.items()} == {"layers.0": [1, 2, 4], "layers.1": [1, 2, 4]}
    assert all(1 <= value <= 8 for value in curves["effective_rank"]["layers.1"][1])
    assert all(0 <= value <= 1 for value in curves["eps_mean"]["layers.0"][1])


def test_what_was_scheduled_is_known_by_where_it_changed(run):
    assert scheduled(run, "vein_tau") == [(1, 0.9), (4, 0.5)] and scheduled(run, "vein_rank") == []


def test_a_run_is_drawn(run, tmp_path, capsys):
    assert main([str(run), str(tmp_path / "new" / "run.png")]) == 0
    assert (tmp_path / "new" / "run.png").read_bytes()[:4] == PNG
    assert "run.png" in capsys.readouterr().out


def test_a_run_without_metrics_says_how_to_get_them(run, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert main([str(tmp_path), str(tmp_path / "x.png")]) == 2
    assert "--vft.metrics true" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        vein_curves(tmp_path / "nowhere")


def test_a_search_is_averaged_over_seeds_at_equal_seconds_and_drawn(tmp_path):
    rows = [
        result("field", "standard 3x32", 0, 2.0, 5000),
        result("field", "3x32, ffn 48", 0, 2.2, 3000),
        result("finalists, seconds", "3x32, ffn 48", 1, 2.4, 3000),
        result("finalists, tokens", "3x32, ffn 48", 0, 9.0, 3000),
    ]
    path = tmp_path / "search.json"
    path.write_text(json.dumps({"rows": rows}))
    points = {point["name"]: point for point in search_points(path)}
    assert points["3x32, ffn 48"]["loss"] == pytest.approx(2.3) and points["3x32, ffn 48"]["seeds"] == 2
    assert main(["--search", str(path), str(tmp_path / "search.png")]) == 0
    assert (tmp_path / "search.png").read_bytes()[:4] == PNG
    path.write_text("[]")
    with pytest.raises(InputError, match="not a result"):
        search_points(path)


def test_the_front_holds_what_no_cheaper_point_beats():
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 3.5), (2.0, 2.0), (4.0, 1.5), (1.0, 3.2)]
    assert pareto(points) == [1, 3, 0]
