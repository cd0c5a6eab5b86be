"""The release checklist: says all that stands between this checkout and a publication; status 1 if anything does.

    python tools/release_check.py                     # what is missing
    python tools/release_check.py --passed test-all   # remembers that a make target passed on this commit

Make targets that end with `--passed NAME` are those that a release wants to have passed, on this very commit and with
nothing uncommitted. They are remembered in build/passed.json. What a machine cannot see is in docs/releasing.md.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from email.parser import Parser
from pathlib import Path

from addresses import disagreeing
from build_hook import ROOT, read_addresses, relative_links

PASSED = Path("build") / "passed.json"


def git(root: Path, *words: str) -> str | None:
    """Return what git says, or None where it fails: no checkout, no such tag."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def version_of(root: Path) -> str:
    """Return the version as the package has it."""
    text = (root / "src" / "blockyard" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]*)"$', text, re.MULTILINE)
    if not found:
        raise SystemExit("src/blockyard/__init__.py has no line __version__ = ...")
    return found[1]


def check_addresses(root: Path) -> Iterator[str]:
    addresses = read_addresses(root)
    where = "in tool.blockyard.release of pyproject.toml"
    if not re.fullmatch(r"https://[\w.-]+\.\w+/[\w.-]+/[\w.-]+", addresses.repository):
        yield f"repository = {addresses.repository!r} {where} should be https://HOST/OWNER/NAME"
    if not re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", addresses.contact):
        yield f"contact = {addresses.contact!r} {where} should be an e-mail address"
    for name in disagreeing(root):
        yield f"{name} does not say what pyproject.toml says; run: make addresses"


def check_version(root: Path) -> Iterator[str]:
    version = version_of(root)
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        yield f"version {version!r} should be like 1.2.3 or 1.2.3rc1"
    cited = re.search(r'^version: "?([^"\n]*)"?$', (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if not cited or cited[1] != version:
        yield f"CITATION.cff cites version {cited[1] if cited else None}, the package is {version}"


def check_changelog(root: Path) -> Iterator[str]:
    version = version_of(root)
    sections = re.split(r"^## ", (root / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    title, _, content = sections[0].partition("\n") if sections else ("", "", "")
    if not re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", title):
        yield f"the first section of CHANGELOG.md is {title!r}; it should be '{version} (YYYY-MM-DD)'"
    elif not content.strip():
        yield f"CHANGELOG.md says nothing about {version}"


def check_tree(root: Path) -> Iterator[str]:
    if (changes := git(root, "status", "--porcelain")) is None:
        yield "this is no git checkout"
        return
    if changes:
        names = changes.splitlines()
        yield f"{len(names)} files are changed or not in git, {names[0].split()[-1]} among them"
    tag, tagged = f"v{version_of(root)}", (git(root, "tag", "--points-at", "HEAD") or "").split()
    if tag not in tagged:
        yield f"this commit has no tag {tag}; links of the index page lead to it: git tag -a {tag}"
    if others := [name for name in tagged if re.match(r"v\d", name) and name != tag]:
        yield f"this commit has the tag {', '.join(others)}, too"


def wanted(root: Path) -> list[str]:
    """Return the make targets that a release wants to have passed."""
    return re.findall(r"--passed ([\w-]+)", (root / "Makefile").read_text(encoding="utf-8"))


def check_passed(root: Path) -> Iterator[str]:
    commit, passed = git(root, "rev-parse", "HEAD"), read_passed(root)
    for target in wanted(root):
        if passed.get(target) is None:
            yield f"`make {target}` has not passed"
        elif passed[target] != commit:
            yield f"`make {target}` passed on commit {passed[target][:12]}, not on this one"


def check_pythons(root: Path) -> Iterator[str]:
    claimed = set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (root / "pyproject.toml").read_text()))
    workflow = (root / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    tried = set(re.findall(r'"(3\.\d+)"', workflow))
    if missing := claimed - tried:
        yield f"pyproject.toml claims Python {', '.join(sorted(missing))}, which the workflow does not try"


def check_files(root: Path) -> Iterator[str]:
    version, folder = version_of(root), root / "dist"
    wheel, sdist = f"blockyard-{version}-py3-none-any.whl", f"blockyard-{version}.tar.gz"
    found = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    if found != [wheel, sdist]:
        yield f"dist/ holds {', '.join(found) or 'nothing'}; it should hold {wheel} and {sdist}: make package"
        return
    with zipfile.ZipFile(folder / wheel) as archive:
        texts = {wheel: archive.read(f"blockyard-{version}.dist-info/METADATA").decode("utf-8")}
    with tarfile.open(folder / sdist) as bundle:
        inner = bundle.extractfile(f"blockyard-{version}/PKG-INFO")
        texts[sdist] = inner.read().decode("utf-8") if inner else ""
    for name, text in texts.items():
        metadata = Parser().parsestr(text)
        addresses = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL", []))
        if addresses != read_addresses(root).urls(version):
            yield f"the URLs in {name} are not those of pyproject.toml: make package"
        if links := [link["target"] for link in relative_links(str(metadata.get_payload()))]:
            yield f"{name}: {len(links)} links of the page lead nowhere on an index, {links[0]} among them"


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    "addresses": check_addresses,
    "version": check_version,
    "changelog": check_changelog,
    "tree and tag": check_tree,
    "passed": check_passed,
    "Pythons": check_pythons,
    "files": check_files,
}


def problems(root: Path = ROOT) -> dict[str, list[str]]:
    """Return what is wrong, by check; an empty list where nothing is."""
    return {name: list(check(root)) for name, check in CHECKS.items()}


def read_passed(root: Path) -> dict[str, str]:
    """Return make target -> commit on which it passed; nothing where nothing readable is remembered."""
    try:
        found = json.loads((root / PASSED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(root: Path, target: str) -> str:
    """Note that a make target passed on this commit; returns what was done, in words."""
    if target not in wanted(root):
        raise SystemExit(f"error: no make target says --passed {target}; there are: {', '.join(wanted(root))}")
    commit, changes = git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain")
    if commit is None or changes:
        return f"{target} passed; not noted for a release, as this is not a commit as it stands"
    path = root / PASSED
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(read_passed(root) | {target: commit}, indent=1) + "\n", encoding="utf-8")
    return f"{target} passed on {commit[:12]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passed", metavar="TARGET", help="a make target that has just passed")
    asked = parser.parse_args()
    if asked.passed:
        print(remember(ROOT, asked.passed))
        return 0
    found = problems()
    for name, said in found.items():
        print("\n".join(f"not yet  {name}: {line}" for line in said) or f"ok       {name}")
    missing = sum(map(len, found.values()))
    name = f"blockyard {version_of(ROOT)}"
    print(f"{missing} things to do before {name} may be published" if missing else f"{name} is ready to publish")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
