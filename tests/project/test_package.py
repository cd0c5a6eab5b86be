"""What a user installs: the package, the whole of it and nothing else, with metadata that an index shows rightly."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

import blockyard
from build_hook import Addresses, ReleaseMetadata, read_addresses, relative_links, with_absolute_links
from tests.fixtures.folders import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SOMEWHERE = Addresses("https://example.org/owner/name", "somebody@example.org")


def build(builder: type, root: Path, folder: Path) -> Path:
    """Build in this process, without a network."""
    manager = PluginManager()
    metadata = ProjectMetadata(str(root), manager)
    made = builder(str(root), plugin_manager=manager, metadata=metadata).build(
        directory=str(folder), versions=["standard"]
    )
    return Path(next(iter(made)))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(SdistBuilder, ROOT, folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"blockyard-{blockyard.__version__}"


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> zipfile.ZipFile:
    """The wheel that is made from the sdist, as pip and `python -m build` make it."""
    return zipfile.ZipFile(build(WheelBuilder, sdist, sdist.parent))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    name = f"blockyard-{blockyard.__version__}.dist-info/METADATA"
    return Parser().parsestr(wheel.read(name).decode("utf-8"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    source = ROOT / "src"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "blockyard"],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:  # an unpacked sdist is no checkout
        expected = {str(file.relative_to(source)) for file in (source / "blockyard").rglob("*") if file.is_file()}
        expected = {name for name in expected if "__pycache__" not in name}
    else:
        expected = {name for name in listed.stdout.splitlines() if (source / name).is_file()}
    info = f"blockyard-{blockyard.__version__}.dist-info"
    facts = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    # What the build itself makes for the first help (hatch_build.py), and no source.
    names = {name for name in wheel.namelist() if not name.startswith("blockyard/cli/shapes/")}
    assert names == expected | facts
    assert {"blockyard/py.typed", "blockyard/report/report.css", "blockyard/claims/statements.toml"} <= expected


def test_the_wheel_offers_the_command(wheel: zipfile.ZipFile) -> None:
    points = wheel.read(f"blockyard-{blockyard.__version__}.dist-info/entry_points.txt").decode()
    assert points == "[console_scripts]\nblockyard = blockyard.cli:main\n"


def test_the_sdist_can_be_tested_and_carried_on(sdist: Path) -> None:
    for name in ("Makefile", "constraints.txt", "tests/conftest.py", "tools/build_hook.py", "docs/api.md", "LICENSE",
                 "benchmarks/between_commits.py", "examples/drop_in.py", "CHANGELOG.md", "README.zh.md"):  # fmt: skip
        assert (sdist / name).is_file(), name
    assert not list(sdist.rglob("__pycache__")) and not (sdist / "shared").exists()


def test_metadata_say_who_what_and_for_which_python(metadata: Message) -> None:
    assert metadata["Name"] == "blockyard" and metadata["Version"] == blockyard.__version__
    assert metadata["Author"] == "the blockyard authors"
    assert metadata["License-Expression"] == "Apache-2.0" and metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Summary"].endswith(".") and len(metadata["Summary"]) < 120
    assert len(metadata["Keywords"].split(",")) >= 5
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(metadata.get_all("Classifier", []))
    core = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert core == ["torch<3,>=2.9"]


def test_metadata_carry_the_readme_and_the_addresses_of_the_one_table(metadata: Message) -> None:
    addresses = read_addresses()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == with_absolute_links(README, addresses, blockyard.__version__).strip()
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL", []))
    assert urls == addresses.urls(blockyard.__version__)


def test_with_a_repository_every_link_of_the_readme_leads_to_a_file_of_this_version() -> None:
    before = [found["target"] for found in relative_links(README)]
    after = with_absolute_links(README, SOMEWHERE, "1.2.3")
    assert before and not list(relative_links(after))
    for target in before:
        path = target.partition("#")[0]
        assert (ROOT / path).exists(), f"README.md links to {path}, which is not there"
        kind = "raw" if path.endswith(".png") else "blob"
        assert f"https://example.org/owner/name/{kind}/v1.2.3/{target}" in after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[a](docs/a.md)", "[a](R/blob/v1/docs/a.md)"),
        ("[a](./docs/a.md#part)", "[a](R/blob/v1/docs/a.md#part)"),
        ("![b](docs/b.png)", "![b](R/raw/v1/docs/b.png)"),
        ('![b](docs/b.SVG "a title")', '![b](R/raw/v1/docs/b.SVG "a title")'),
        ("[![b](b.png)](a.md)", "[![b](R/raw/v1/b.png)](R/blob/v1/a.md)"),
        ("[a]: docs/a.md", "[a]: R/blob/v1/docs/a.md"),
        ('<img width="9" src="b.png">', '<img width="9" src="R/raw/v1/b.png">'),
        ("[a](https://x.org/y) [b](#part) <a@b.c> [c](mailto:a@b.c)", None),
        ("```python\nx[a](b)\n```\n~~~\n[a](b)\n~~~", None),
        ("`[a](b)` and ``[a](b) ` ``", None),
    ],
    ids=["page", "part", "picture", "title", "linked picture", "reference", "HTML", "absolute", "fence", "span"],
)
def test_relative_links_are_made_absolute_and_nothing_else(before: str, after: str | None) -> None:
    addresses = Addresses("R", "")
    assert with_absolute_links(before, addresses, "1") == (before if after is None else after)
    assert with_absolute_links(before, Addresses(), "1") == before


def test_the_hook_fills_in_urls_once_there_is_a_repository(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("[a](a.md)")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.blockyard.release]\nrepository = "https://example.org/o/n"\ncontact = ""\n'
    )
    found = {"version": "9.9"}
    ReleaseMetadata(str(tmp_path), {}).update(found)
    assert found["readme"]["text"] == "[a](https://example.org/o/n/blob/v9.9/a.md)"  # type: ignore[index]
    assert found["urls"]["Changelog"] == "https://example.org/o/n/blob/v9.9/CHANGELOG.md"  # type: ignore[index]


@pytest.mark.parametrize("table", ['repository = ""', 'repository = ""\ncontact = ""\nrepo = ""'])
def test_a_table_of_addresses_with_a_missing_or_misspelt_key_is_an_error(tmp_path: Path, table: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.blockyard.release]\n{table}\n")
    with pytest.raises(TypeError):
        read_addresses(tmp_path)
