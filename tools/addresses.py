"""The project's addresses, written to the files where people and forges look for them.

    python tools/addresses.py [--write]

They stand once, in `tool.blockyard.release` of pyproject.toml. CITATION.cff, SECURITY.md and the issue forms' settings
repeat them, since nobody who reads those builds anything first; without `--write` this says which of them disagree and
ends with status 1.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from build_hook import ROOT, Addresses, read_addresses

CITATION, SECURITY, FORMS = "CITATION.cff", "SECURITY.md", ".github/ISSUE_TEMPLATE/config.yml"
_REPOSITORY_CODE = re.compile(r"^repository-code: .*\n", re.MULTILINE)
_CONTACT = re.compile(r"(?<=<!-- contact -->\n).*?(?=<!-- end of contact -->)", re.DOTALL)


def citation(text: str, addresses: Addresses) -> str:
    """Return CITATION.cff with the repository behind the license, or without any."""
    line = f'repository-code: "{addresses.repository}"\n' if addresses.repository else ""
    bare = _REPOSITORY_CODE.sub("", text)
    return re.sub(r"^license: .*\n", lambda found: found[0] + line, bare, flags=re.MULTILINE)


def security(text: str, addresses: Addresses) -> str:
    """Return SECURITY.md with the contact between its two marks."""
    if addresses.contact:
        said = f"Write to <{addresses.contact}>; please open no public issue before there is a fix.\n"
    else:
        said = (
            "This copy has no address for it yet: no version is published without one. Until then, tell whoever gave\n"
            "you this copy, in private.\n"
        )
    return _CONTACT.sub(lambda _: said, text)


def forms(text: str, addresses: Addresses) -> str:
    """Return the settings of the issue forms, with a link to how vulnerabilities are reported."""
    del text  # nothing else stands there
    if not addresses.repository:
        return "blank_issues_enabled: false\ncontact_links: []\n"
    return (
        "blank_issues_enabled: false\ncontact_links:\n"
        "  - name: A vulnerability\n"
        f"    url: {addresses.repository}/blob/main/SECURITY.md\n"
        "    about: Please tell it in private, not in an issue.\n"
    )


COPIES = {CITATION: citation, SECURITY: security, FORMS: forms}


def disagreeing(root: Path = ROOT) -> dict[str, str]:
    """Return the files that do not say what pyproject.toml says, with the text that they should have."""
    addresses = read_addresses(root)
    found = {}
    for name, renew in COPIES.items():
        text = (root / name).read_text(encoding="utf-8")
        if (new := renew(text, addresses)) != text:
            found[name] = new
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write them")
    asked = parser.parse_args()
    found = disagreeing()
    for name, text in found.items():
        if asked.write:
            (ROOT / name).write_text(text, encoding="utf-8")
        print(f"{name}: {'written' if asked.write else 'does not say what pyproject.toml says'}")
    return 1 if found and not asked.write else 0


if __name__ == "__main__":
    sys.exit(main())
