"""What runs on a forge is what runs at home: workflows, hooks and forms name what is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import blockyard
from addresses import COPIES, citation, disagreeing, forms, security
from build_hook import Addresses
from tests.fixtures.folders import ROOT

FORGE = ROOT / ".github"
WORKFLOWS = sorted((FORGE / "workflows").glob("*.yml"))
FORMS = sorted(file for file in (FORGE / "ISSUE_TEMPLATE").glob("*.yml") if file.name != "config.yml")
SOMEWHERE = Addresses("https://example.org/owner/name", "somebody@example.org")


def targets() -> set[str]:
    """The targets of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):", text, re.MULTILINE))


def commands(job: dict[str, Any]) -> list[str]:
    """The commands of a job, once for each value of its matrix."""
    found = [line for step in job["steps"] for line in str(step.get("run", "")).splitlines()]
    for name, values in job.get("strategy", {}).get("matrix", {}).items():
        found = [line.replace(f"${{{{ matrix.{name} }}}}", str(value)) for line in found for value in values]
    return found


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_every_command_of_a_workflow_is_a_target_of_the_makefile(file: Path) -> None:
    jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
    for name, job in jobs.items():
        assert commands(job), f"{file.name}: {name} runs nothing"
        for line in commands(job):
            assert re.fullmatch(r"make [a-z][\w-]*", line), f"{file.name}: {name}: {line}"
            assert line.removeprefix("make ") in targets(), f"{file.name}: {name}: {line}: no such target"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_pin_actions_end_in_time_and_write_nothing(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
    # YAML 1.1 reads the word `on` as true.
    assert workflow[True] and workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["runs-on"] and 0 < job["timeout-minutes"] < 360, name
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used), (name, used)


def test_the_tests_run_on_each_python_with_two_instruction_sets() -> None:
    jobs = yaml.safe_load((FORGE / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix == {"python": ["3.11", "3.12", "3.13", "3.14"], "target": ["test", "test-avx2"]}


def test_hooks_are_local_and_run_what_the_makefile_installs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    for hook in hooks["repos"][0]["hooks"]:
        assert hook["language"] == "system" and hook["entry"].startswith(".venv/bin/"), hook["id"]
        for word in hook["entry"].split():
            assert not word.startswith("tests/") or (ROOT / word).is_file(), word


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.name)
def test_issue_forms_are_as_a_forge_wants_them(file: Path) -> None:
    form = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert form.keys() == {"name", "description", "body"}
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids))
    for part in form["body"]:
        assert part["type"] in ("checkboxes", "dropdown", "input", "textarea") and part["attributes"]["label"]


def test_the_citation_is_of_this_version_and_of_the_authors() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["title"] == "blockyard" and cited["message"]
    assert cited["version"] == blockyard.__version__ and cited["license"] == "Apache-2.0"
    assert cited["authors"] == [{"name": "the blockyard authors"}]


def test_files_that_repeat_the_addresses_say_what_pyproject_says() -> None:
    assert not disagreeing(), "run: make addresses"


def test_addresses_are_written_to_each_file_and_taken_out_again() -> None:
    for name, renew in COPIES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        filled = renew(text, SOMEWHERE)
        assert filled.count("example.org") == 1 and renew(filled, SOMEWHERE) == filled, name
        assert renew(filled, Addresses()) == renew(text, Addresses()), name


def test_filled_in_files_are_valid() -> None:
    cited = yaml.safe_load(citation((ROOT / "CITATION.cff").read_text(encoding="utf-8"), SOMEWHERE))
    assert cited["repository-code"] == SOMEWHERE.repository and cited["keywords"]
    links = yaml.safe_load(forms("", SOMEWHERE))["contact_links"]
    assert links[0]["url"] == f"{SOMEWHERE.repository}/blob/main/SECURITY.md" and links[0]["about"]
    page = security((ROOT / "SECURITY.md").read_text(encoding="utf-8"), SOMEWHERE)
    assert "<somebody@example.org>" in page and "no address" not in page and "docs/security.md" in page
