"""What must be the same for a run to be continued: its options, its data, and the checkpoint's own word on both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from blockyard.errors import InputError
from blockyard.training.checkpoint import Checkpoint, load_checkpoint
from blockyard.training.config import FREE_ON_RESUME
from blockyard.training.folder import RunFolder, differing_keys


class Resumption(NamedTuple):
    """Where a run goes on.

    Args:
        checkpoint: the newest one; None before the first, when the run begins again.
        shorter: the training options that the run had, when more steps are asked for than it was to make.
    """

    checkpoint: Checkpoint | None
    shorter: Mapping[str, Any] | None


class Meaning:
    """What option groups mean where two of them are compared. Here, what is written; tasks know more."""

    def completed(self, groups: Mapping[str, Any]) -> dict[str, Any]:
        """The groups with the options that an older version could not write, at the values that its models had."""
        return dict(groups)

    def come_to(self, groups: Mapping[str, Any]) -> Mapping[str, Any]:
        """The model's options that leave something to its blocks, with what they come to."""
        return {}

    def defaults(self, groups: Mapping[str, Any]) -> Callable[[str, str], Any]:
        """What an option is, by group and name, where nobody gave it; None where that is unknown."""
        return lambda group, key: None


def resumption(
    folder: RunFolder, resolved: Mapping[str, Any], fingerprint: Mapping[str, Any], meaning: Meaning
) -> Resumption:
    """Find the point from which a folder's run goes on, and refuse other options or other data than it began with.

    More steps are no other options: they extend the run.

    Args:
        folder: the run's.
        resolved: all options as asked for now.
        fingerprint: of the data as read now, by name; those ending in sha256 must agree.
        meaning: of the options.

    Raises:
        InputError: naming what differs, or a checkpoint that is damaged.
    """
    written = folder.read_config()
    asked, saved = meaning.completed(resolved), meaning.completed(written)
    unnamed = (saved.get("model") or {}).keys() - (written.get("model") or {}).keys()
    if unnamed & (resolved.get("model") or {}).keys():
        # An older version wrote it: what it could not name is the same if it comes to the same.
        come_to = meaning.come_to(resolved)
        asked["model"] = {**asked["model"], **{name: come_to[name] for name in unnamed}}
    different = _differing(saved, asked, meaning)
    if different:
        raise InputError(
            f"--resume with another configuration: {'; '.join(different)}; use the run's own or another --out"
        )
    latest = folder.latest()
    loaded = load_checkpoint(latest) if latest else None
    state = loaded.state if loaded is not None else {}
    if isinstance(state.get("config"), dict):
        # A config.yaml that was edited agrees with itself, so the checkpoint has the last word. Not on the data's
        # options: files may have moved, and their content is compared.
        trained = meaning.completed(state["config"])
        before, now = ({k: v for k, v in c.items() if k != "data"} for c in (trained, asked))
        different = _differing(before, now, meaning)
        if different:
            raise InputError(
                f"--resume with an edited config.yaml: {'; '.join(different)}; put it back, or use another --out"
            )
        saved = trained
    # The first checkpoint is written long after the folder: until then its environment knows the data. Checkpoints
    # from before format 2 do not.
    _check_data(folder, state.get("data") or folder.read_environment().get("data"), fingerprint)
    return Resumption(loaded, saved.get("train") if _extends(saved, asked) else None)


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], meaning: Meaning) -> list[str]:
    """Options that differ and must not, as words; all of them if there are any."""
    extended = {"steps", "warmup"} if _extends(before, now) else set()
    # A run that was begun in Python, or by an older version, does not mention every option.
    default = meaning.defaults(now)
    if not differing_keys(before, now, FREE_ON_RESUME | extended, default):
        return []
    return differing_keys(before, now, FREE_ON_RESUME, default)


def _extends(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the options ask for the same run with more steps."""
    had, asked = before.get("train"), now.get("train")
    if not isinstance(had, dict) or not isinstance(asked, dict):
        return False
    try:
        # A short run had its warm-up cut to a tenth; the longer one has what was asked for.
        warmed = had.get("warmup") in (asked.get("warmup"), had["steps"] // 10)
        return bool(asked["steps"] > had["steps"]) and warmed
    except (KeyError, TypeError):
        return False


def _check_data(folder: RunFolder, before: Any, fingerprint: Mapping[str, Any]) -> None:
    """Refuse data whose checksums differ from those that the run knew."""
    for key, now in fingerprint.items():
        what = key.removesuffix("sha256").removesuffix("_") or "data"
        if key.endswith("sha256") and isinstance(before, dict) and before.get(key) != now:
            raise InputError(
                f"--resume with other data: the {what} of {folder.path} had sha256 {before.get(key)}, "
                f"{fingerprint.get('source')} now has {now}"
            )
