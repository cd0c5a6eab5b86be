"""The release checklist refuses whatever is not ready, by name, and lets pass what is."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import release_check
from addresses import disagreeing
from release_check import problems, read_passed, remember, wanted
from tests.fixtures.folders import ROOT

ADDRESSES = '[tool.blockyard.release]\nrepository = "https://example.org/owner/name"\ncontact = "us@example.org"\n'
METADATA = (
    "Metadata-Version: 2.4\nName: blockyard\nVersion: 1.2.3\n{urls}\n# blockyard\n\n[docs](https://example.org/d.md)\n"
)
URLS = """\
Project-URL: Repository, https://example.org/owner/name
Project-URL: Documentation, https://example.org/owner/name/tree/v1.2.3/docs
Project-URL: Changelog, https://example.org/owner/name/blob/v1.2.3/CHANGELOG.md
Project-URL: Issues, https://example.org/owner/name/issues
"""


def git(root: Path, *words: str) -> str:
    who = [
        "-c",
        "user.name=A",
        "-c",
        "user.email=a@example.org",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "tag.gpgsign=false",
    ]
    return subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def write_files(root: Path, metadata: str) -> None:
    """Write a wheel and an sdist with these metadata into dist/."""
    (root / "dist").mkdir(exist_ok=True)
    with zipfile.ZipFile(root / "dist" / "blockyard-1.2.3-py3-none-any.whl", "w") as wheel:
        wheel.writestr("blockyard-1.2.3.dist-info/METADATA", metadata)
    with tarfile.open(root / "dist" / "blockyard-1.2.3.tar.gz", "w:gz") as sdist:
        entry = tarfile.TarInfo("blockyard-1.2.3/PKG-INFO")
        entry.size = len(metadata.encode())
        sdist.addfile(entry, io.BytesIO(metadata.encode()))


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A checkout of which nothing is missing."""
    classifier = 'classifiers = ["Programming Language :: Python :: 3.11"]\n'
    write(tmp_path, "pyproject.toml", classifier + ADDRESSES)
    write(tmp_path, "Makefile", "test-all:\n\tpython tools/release_check.py --passed test-all\n")
    write(tmp_path, "CHANGELOG.md", "# Changes\n\n## 1.2.3 (2030-01-31)\n\n- all of it\n")
    write(tmp_path, "src/blockyard/__init__.py", '__version__ = "1.2.3"\n')
    write(tmp_path, ".gitignore", "build/\ndist/\n")
    write(tmp_path, ".github/workflows/ci.yml", 'python: ["3.11", "3.12"]\n')
    for name in ("CITATION.cff", "SECURITY.md", ".github/ISSUE_TEMPLATE/config.yml"):
        write(tmp_path, name, (ROOT / name).read_text(encoding="utf-8"))
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    write(tmp_path, "CITATION.cff", re.sub("^version: .*", 'version: "1.2.3"', cited, flags=re.MULTILINE))
    for name, text in disagreeing(tmp_path).items():
        write(tmp_path, name, text)
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    git(tmp_path, "tag", "-a", "v1.2.3", "-m", "1.2.3")
    remember(tmp_path, "test-all")
    write_files(tmp_path, METADATA.format(urls=URLS))
    return tmp_path


def commit(root: Path) -> None:
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "a change")


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return change


def test_what_is_ready_passes(ready: Path) -> None:
    assert not [line for said in problems(ready).values() for line in said]


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no repository": (replace("pyproject.toml", "https://example.org/owner/name", ""), "addresses", "HOST/OWNER/NAME"),
    "no contact": (replace("pyproject.toml", "us@example.org", ""), "addresses", "e-mail"),
    "a contact that is none": (replace("pyproject.toml", "us@", "us at "), "addresses", "'us at example.org'"),
    "a copy that says otherwise": (replace("SECURITY.md", "us@example.org", "me@example.org"), "addresses", "SECURITY"),
    "a version for trying": (replace("src/blockyard/__init__.py", "1.2.3", "1.2.3.dev1"), "version", "1.2.3.dev1"),
    "another version cited": (replace("CITATION.cff", "1.2.3", "1.2.2"), "version", "cites version 1.2.2"),
    "changes unreleased": (replace("CHANGELOG.md", "1.2.3 (2030-01-31)", "Unreleased"), "changelog", "'Unreleased'"),
    "changes without a date": (replace("CHANGELOG.md", " (2030-01-31)", ""), "changelog", "YYYY-MM-DD"),
    "no changes": (replace("CHANGELOG.md", "- all of it", ""), "changelog", "says nothing"),
    "a file that is not committed": (lambda root: write(root, "new.py", ""), "tree and tag", "new.py"),
    "no tag": (lambda root: git(root, "tag", "-d", "v1.2.3"), "tree and tag", "no tag v1.2.3"),
    "a second tag": (lambda root: git(root, "tag", "v1.2.4"), "tree and tag", "v1.2.4"),
    "no git": (lambda root: (root / ".git").rename(root / "git"), "tree and tag", "no git checkout"),
    "tests never ran": (lambda root: (root / release_check.PASSED).unlink(), "passed", "has not passed"),
    "what is remembered is damaged": (lambda root: write(root, "build/passed.json", "{"), "passed", "has not passed"),
    "tests of another commit": (
        lambda root: (write(root, "new.py", ""), commit(root)), "passed", "not on this one"
    ),
    "a Python that nothing tries": (replace("pyproject.toml", "3.11", "3.15"), "Pythons", "3.15"),
    "nothing built": (lambda root: (root / "dist" / "blockyard-1.2.3.tar.gz").unlink(), "files", "make package"),
    "an old file beside": (lambda root: write(root, "dist/blockyard-1.2.2.tar.gz", ""), "files", "1.2.2"),
    "built without addresses": (lambda root: write_files(root, METADATA.format(urls="")), "files", "URLs"),
    "relative links": (
        lambda root: write_files(root, METADATA.format(urls=URLS) + "![p](docs/p.png)"), "files", "docs/p.png"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_ready_is_refused_by_name(ready: Path, fault: str) -> None:
    change, check, words = FAULTS[fault]
    change(ready)
    assert any(words in line for line in problems(ready)[check]), problems(ready)


def test_a_target_counts_only_for_the_commit_as_it_stands(ready: Path) -> None:
    (ready / release_check.PASSED).unlink()
    write(ready, "new.py", "")
    assert "not noted" in remember(ready, "test-all") and not read_passed(ready)
    commit(ready)
    assert remember(ready, "test-all").startswith("test-all passed on ")
    assert read_passed(ready) == {"test-all": git(ready, "rev-parse", "HEAD")}


def test_a_target_that_no_release_asks_for_is_not_remembered(ready: Path) -> None:
    with pytest.raises(SystemExit, match="there are: test-all"):
        remember(ready, "tests")


def test_a_release_wants_the_slow_proofs_the_instruction_sets_the_speeds_and_the_package() -> None:
    assert {"test-all", "test-isa", "bench-check", "package"} <= set(wanted(ROOT))
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^publish: .*\brelease-check\b", recipe, re.MULTILINE)


def test_this_checkout_is_not_published_while_its_addresses_are_empty(monkeypatch, capsys) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if 'repository = ""' not in text:
        pytest.skip("there are addresses now")
    monkeypatch.setattr("sys.argv", ["release_check.py"])
    assert release_check.main() == 1
    assert "not yet  addresses: repository = ''" in capsys.readouterr().out
