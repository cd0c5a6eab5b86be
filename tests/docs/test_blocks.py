"""Every code block of README and docs/ does what it shows; one that no test can run at least could be typed so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, RUN, blocks_of, pages, runnable
from tests.docs.form import faults
from tests.docs.pages import Failed, run_blocks

PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
FAST = [name for name, page in PAGES.items() if any(block.language in RUN for block in runnable(page, slow=False))]
SLOW = [name for name, page in PAGES.items() if runnable(page, slow=True)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's home is not written to; what one page makes again another finds."""
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path_factory.getbasetemp() / "docs-cache"))


def run(name: str, folder: Path, slow: bool) -> None:
    try:
        assert run_blocks(runnable(PAGES[name], slow=slow), folder, slow=slow)
    except Failed as failed:
        pytest.fail(str(failed), pytrace=False)


@pytest.mark.parametrize("name", PAGES)
def test_blocks_could_be_typed_as_they_stand(name: str) -> None:
    found = [f"{block.place}: {fault}" for block in blocks_of(PAGES[name]) for fault in faults(block)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", FAST)
def test_blocks_of_a_page_run(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_all_blocks_of_a_page_run(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, slow=True)
