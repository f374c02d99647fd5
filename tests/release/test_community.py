"""What somebody who reports, cites or contributes finds."""

import re

import yaml

from tests.release.test_workflows import GITHUB, ROOT, assert_follows

CONFIG = GITHUB / "ISSUE_TEMPLATE" / "config.yml"
FORMS = sorted(set(CONFIG.parent.glob("*.yml")) - {CONFIG})


def test_forms_follow_github_s_schemas() -> None:
    assert_follows("github-issue-forms", FORMS)
    assert_follows("github-issue-config", [CONFIG])


def test_the_citation_has_what_its_format_requires() -> None:
    """And cffconvert accepted it: `cffconvert --validate`."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["license"] == "MIT"
    assert "MIT License" in (ROOT / "LICENSE").read_text()


def test_contributing_names_targets_that_there_are() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"`make ([\w ]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert named
    assert {target for line in named for target in line.split()} <= targets
