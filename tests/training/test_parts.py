"""Checkpoints in parts: written whole or not at all, read back exactly, refused when a part is not as it was."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.training.checkpoint import list_checkpoints, load_checkpoint, save_in_parts, with_content
from blockyard.training.distributed import Ranks
from blockyard.training.parts import outline

ALONE = Ranks(0, 1, torch.device("cpu"))


def tensors() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    model = {
        "a.weight": torch.randn(5, 3, generator=generator),
        "a.bias": torch.randn(5, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(7),
        "seen": torch.tensor([True, False]),
    }
    optimizer = {"a.weight/exp_avg": torch.randn(5, 3, generator=generator), "a.weight/step": torch.tensor(4.0)}
    return model, optimizer


def saved(folder: Path, step: int = 3) -> Path:
    model, optimizer = tensors()
    assert save_in_parts(folder, step, ALONE, model=model, optimizer=optimizer, state={"step": step})
    return list_checkpoints(folder)[-1][1]


def test_what_is_written_in_parts_is_read_back_whole(tmp_path: Path) -> None:
    loaded = load_checkpoint(saved(tmp_path))
    model, optimizer = tensors()
    assert loaded.parts is None and loaded.state["step"] == 3
    for found, expected in ((loaded.model, model), (loaded.optimizer, optimizer)):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert load_checkpoint(tmp_path / "step-00000003", with_optimizer=False).optimizer == {}


def test_parts_can_be_left_where_they_are(tmp_path: Path) -> None:
    loaded = load_checkpoint(saved(tmp_path), in_parts=True)
    assert loaded.model["a.weight"].is_meta and loaded.model["a.weight"].shape == (5, 3)
    model, _ = tensors()
    assert torch.equal(with_content(loaded, model).model["a.weight"], model["a.weight"])


def test_nothing_in_it_is_a_pickle(tmp_path: Path) -> None:
    files = [path for path in saved(tmp_path).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _change(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def _add(file: Path) -> None:
    (file.parent / "one-more.safetensors").write_bytes(file.read_bytes())


@pytest.mark.parametrize(
    ("damage", "told"),
    [(_truncate, "truncated or corrupt"), (_change, "truncated or corrupt"), (Path.unlink, "is missing"),
     (_add, "is not of this checkpoint")],
)  # fmt: skip
def test_a_part_that_is_not_as_it_was_is_refused(tmp_path: Path, damage: Any, told: str) -> None:
    saved(tmp_path, step=2)
    damage(next((saved(tmp_path) / "parts").iterdir()))
    with pytest.raises(InputError, match=f"{told}.*resume from step-00000002, which is older"):
        load_checkpoint(tmp_path / "step-00000003")


def test_parts_that_do_not_make_the_whole_are_refused(tmp_path: Path) -> None:
    """As when the list of files was written without one of them."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    file = next((saved(tmp_path) / "parts").iterdir())
    with safe_open(file, framework="pt") as opened:
        held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        facts = opened.metadata()
    told = json.loads(facts["DCP_SHARDING_INFO"])
    # Its first rows alone: another rank held these.
    told["model/a.weight"]["saved_offsets"] = [5, 0]
    save_file(held, file, metadata={**facts, "DCP_SHARDING_INFO": json.dumps(told)})
    with pytest.raises(InputError, match=r"the parts of model/a\.weight do not make the whole"):
        outline(file.parent)


def test_a_disk_that_is_full_leaves_the_checkpoints_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, step=2)

    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for target in ("blockyard.training.checkpoint.write_state", "torch.distributed.checkpoint.save"):
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            with pytest.raises(InputError, match=r"cannot write checkpoint .*No space left on device; .* intact"):
                saved(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
        assert torch.equal(load_checkpoint(tmp_path / "step-00000002").model["count"], torch.tensor(7))


def test_ranks_that_do_not_see_one_folder_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "gathered", lambda ranks, value: [value, False])
    model, optimizer = tensors()
    assert not save_in_parts(tmp_path, 3, ALONE, model=model, optimizer=optimizer, state={"step": 3})
    assert list(tmp_path.iterdir()) == []


def test_one_rank_of_several_reads_a_whole_checkpoint_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where machines have no common disk: the others take no part, and waiting for them would never end."""
    path, asked = saved(tmp_path), []
    real = torch.distributed.checkpoint.load

    def load(*arguments: Any, no_dist: bool = False, **more: Any) -> None:
        asked.append(no_dist)
        with monkeypatch.context() as patch:
            patch.setattr("torch.distributed.is_initialized", lambda: False)
            real(*arguments, no_dist=True, **more)

    monkeypatch.setattr("torch.distributed.checkpoint.load", load)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert torch.equal(load_checkpoint(path).model["count"], torch.tensor(7))
    assert asked == [True]
    # Sharded, all of them read, each its own.
    with_content(load_checkpoint(path, in_parts=True), tensors()[0])
    assert asked == [True, False]
