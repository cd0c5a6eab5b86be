"""What must be the same for a run to be continued: its options, its data, and the checkpoint's own word on both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockyard.errors import InputError
from blockyard.training.checkpoint import Checkpoint, load_checkpoint
from blockyard.training.config import FREE_ON_RESUME
from blockyard.training.folder import RunFolder, differing_keys, with_task


def check_same_run(folder: RunFolder, resolved: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Refuse other options or other data than those that the folder's run began with.

    Args:
        folder: the run's.
        resolved: all options as asked for now.
        fingerprint: of the data as read now, by name; those ending in sha256 must agree.

    Raises:
        InputError: naming what differs.
    """
    different = differing_keys(with_task(folder.read_config()), with_task(resolved), FREE_ON_RESUME)
    if different:
        raise InputError(
            f"--resume with another configuration: {'; '.join(different)}; use the run's own or another --out"
        )
    before = folder.read_environment().get("data")
    for key, now in fingerprint.items():
        what = key.removesuffix("sha256").removesuffix("_") or "data"
        if key.endswith("sha256") and isinstance(before, dict) and before.get(key) != now:
            raise InputError(
                f"--resume with other data: the {what} of {folder.path} had sha256 {before.get(key)}, "
                f"{fingerprint.get('source')} now has {now}"
            )


def last_checkpoint(folder: RunFolder, resolved: Mapping[str, Any]) -> Checkpoint | None:
    """The newest complete checkpoint of the run, None before the first.

    Raises:
        InputError: when it is damaged, or was trained with other options than those asked for.
    """
    latest = folder.latest()
    loaded = load_checkpoint(latest) if latest else None
    if loaded is None or not isinstance(loaded.state.get("config"), dict):
        return loaded
    # A config.yaml that was edited agrees with itself, so the checkpoint has the last word. Not on the data: files may
    # have moved, and their content was compared.
    trained, asked = (
        {k: v for k, v in with_task(c).items() if k != "data"} for c in (loaded.state["config"], resolved)
    )
    different = differing_keys(trained, asked, FREE_ON_RESUME)
    if different:
        raise InputError(
            f"--resume with an edited config.yaml: {'; '.join(different)}; put it back, or use another --out"
        )
    return loaded
