"""What a strict build of the site rests on, checked without the tools that build it: pages, links, pictures."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.blocks import FENCE, ROOT, pages

DOCS = ROOT / "docs"
CONFIG = ROOT / "site" / "mkdocs.yml"
LINK = re.compile(r"(?<!\\)\]\(([^()\s]+)\)")
ALL = [*pages(), ROOT / "CHANGELOG.md"]
# Made of files of the root, and of docs/api.md, by site/hooks.py.
MADE = {"index.md": "README.md", "zh/index.md": "README.zh.md", "changes.md": "CHANGELOG.md"}


def config() -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    return yaml.load(CONFIG.read_text(encoding="utf-8"), Loader)


def prose(page: Path) -> list[str]:
    """The lines of a page outside fences and comments, without inline code."""
    lines, fence = [], ""
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in text.splitlines():
        opened = FENCE.match(line)
        if opened and not fence:
            fence = opened["fence"]
        elif fence and line.strip() == fence:
            fence = ""
        elif not fence:
            lines.append(line)
    return lines


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text.strip()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(line.lstrip("#")) for line in prose(page) if re.match(r"#{1,6} ", line)}


def named_in(entries: list[Any]) -> list[str]:
    found: list[str] = []
    for entry in entries:
        inside = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += named_in(inside) if isinstance(inside, list) else [inside]
    return found


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for line in prose(page):
        for target in LINK.findall(re.sub(r"`[^`]*`", "", line)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: there is no {target}"
            assert file.is_relative_to(ROOT), f"{page.name}: {target} leads out of the repository"
            if anchor:
                assert anchor in anchors(file), f"{page.name}: no heading of {file.name} has the anchor {anchor!r}"


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_one_title_and_whole_headings(page: Path) -> None:
    levels = [len(line) - len(line.lstrip("#")) for line in prose(page) if re.match(r"#{1,6} ", line)]
    assert levels.count(1) == 1 and levels[0] == 1, f"{page.name} should begin with its only heading of level 1"
    for above, below in itertools.pairwise(levels):
        assert below <= above + 1, f"{page.name}: a heading of level {below} stands straight under one of {above}"


def test_every_page_is_in_the_menu_once() -> None:
    named = named_in(config()["nav"])
    assert len(named) == len(set(named)), "a page stands in the menu twice"
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    # Those find their place by their folder (site/hooks.py).
    there -= {name for name in there if name.startswith(("tutorials/", "zh/tutorials/"))}
    assert set(named) == there | set(MADE), set(named) ^ (there | set(MADE))
    assert all((ROOT / name).is_file() for name in MADE.values())


def test_the_build_is_strict_and_asks_the_network_for_nothing() -> None:
    found = config()
    assert found["strict"] is True
    assert found["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & found.keys()
    assert not [plugin for plugin in found["plugins"] if plugin == "offline"], "it fetches a script"
    kinds = found["validation"]
    assert {level for kind in kinds.values() for level in kind.values()} == {"warn"}
    for file in (CONFIG, *CONFIG.parent.glob("*.css")):
        assert "http" not in file.read_text(encoding="utf-8")


def test_every_picture_has_words_and_is_a_file_of_the_repository() -> None:
    for page in ALL:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^()\s]+)\)", "\n".join(prose(page))):
            assert words.strip(), f"{page.name}: {target} has no words for those who do not see it"
            # An index of packages shows a README from elsewhere: its pictures have whole addresses.
            local = re.match(r"[a-z]+:", target) is None
            assert not local or (page.parent / target).is_file(), f"{page.name}: there is no {target}"


def test_every_system_has_a_page_in_both_languages_that_says_when_and_when_not() -> None:
    for name in ("standard", "latent", "vein", "spectral", "complex", "moe"):
        english = DOCS / f"{name}.md"
        titles = [line.lstrip("# ") for line in prose(english) if line.startswith("## ")]
        assert titles[:3] == ["The idea", "When to use it, when not", "Definition"], f"{english.name}: {titles[:3]}"
        chinese = DOCS / "zh" / f"{name}.md"
        titles = [line.lstrip("# ") for line in prose(chinese) if line.startswith("## ")]
        assert titles[:3] == ["想法", "何时用，何时不用", "定义"], f"zh/{name}.md: {titles[:3]}"
        for page in (english, chinese):
            assert f"images/{name}-idea.png" in page.read_text(encoding="utf-8")
            assert "```math" in page.read_text(encoding="utf-8")
        assert f"](../{name}.md" in chinese.read_text(encoding="utf-8"), "the figures stand in the English page"
