"""`tune`: a search over any options of a task, each trial a real run of the training engine at a stated budget."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from blockyard.compare.launch import check_reachable
from blockyard.compare.settings import Groups
from blockyard.errors import InputError, require
from blockyard.files import check_writable, nothing_left, plain
from blockyard.machine.launch import world_size
from blockyard.machine.memory import forcing
from blockyard.mirror import is_url, mirrored
from blockyard.registry.plugins import load_plugins
from blockyard.tune import schema
from blockyard.tune.settings import TuneConfig, plain_groups
from blockyard.tune.space import Space, read_space
from blockyard.tune.start import DefaultRun, SearchState, terms_of


def tune(
    task: str,
    over: Mapping[str, Any] | Space,
    config: TuneConfig,
    groups: Groups | None = None,
    out: str | Path = "tuning",
    *,
    show: bool = True,
    force: bool = False,
) -> schema.Tuning | None:
    """Search for the best options of a task and write what was found into a folder.

    The folder can be given again after a kill (finished trials are kept, one that was cut off goes on where its last
    checkpoint is), or with more trials or seeds (only what is missing is run).

    Args:
        task: the kind of task, by name.
        over: what is searched: `group.option` -> its values, as `read_space` takes them.
        config: the terms.
        groups: options that all trials share: `model`, `train`, `data`, `attn`, `ffn`, a family's, and `plugins`.
        out: folder of the runs and the report, or its URL.
        show: show progress on standard error.
        force: train also what by its estimate does not fit into memory; without it such a trial fails.

    Returns: the record, as tune.json holds it; none where a search was joined that another machine leads.

    Raises:
        InputError: for anything the user can put right, before anything is trained where it can be known; and when
            every trial failed.
        Interrupted: after SIGTERM or SIGINT, when the run in training has been saved.
    """
    if world_size() > 1:
        raise InputError("tune runs in processes of its own (--workers); start it without torchrun")
    require("optuna", extra="tune")
    require("matplotlib", extra="report")
    # It stands on Optuna, whose absence has just been told in a line.
    from blockyard.tune.joining import join
    from blockyard.tune.report import shown
    from blockyard.tune.session import Session

    if is_url(out):
        if config.join or (config.engine != "local" and config.storage is None):
            # Trials are claimed by the locks of the folder where no database does it.
            raise InputError(
                "join: give a folder of its own, not a URL"
                if config.join
                else "a search on a cluster whose folder is a URL needs a database, too: give --storage URL"
            )
        with mirrored(str(out)) as folder:
            return tune(task, over, config, groups, folder, show=show, force=force)
    fixed = plain_groups(groups or {})
    load_plugins(tuple(fixed.get("plugins") or ()))
    space = over if isinstance(over, Space) else read_space(task, over)
    space.check(fixed)
    check_reachable(config)
    check_writable(out, folder=True)
    with forcing(force):
        start = DefaultRun(task, space, fixed, config)
    if start.threads:
        torch.set_num_threads(start.threads)
    if config.join:
        with nothing_left(Path(out)) as keep, forcing(force):
            join(start, Path(out), keep)
        return None
    with nothing_left(Path(out)) as keep, closing(SearchState(Path(out))) as state:
        state.agree(terms_of(start))
        state.data |= {"space": [d.to_dict() for d in space.dimensions], "fixed": plain(fixed), "task": task}
        state.save()
        with forcing(force), closing(Session(start, Path(out), state, show)) as session:
            keep()
            return shown(session.run())
