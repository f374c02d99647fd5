"""What `make tasks` types is in README; the tasks themselves need a package index and minutes."""

from tests.tasks import INSTALL, ROOT, not_in_readme


def test_readme_has_every_line_that_the_tasks_type() -> None:
    assert not not_in_readme((ROOT / "README.md").read_text())


def test_a_line_that_readme_does_not_have_is_found() -> None:
    text = (ROOT / "README.md").read_text()
    assert not_in_readme(text.replace(INSTALL, "pip install tritter-mem")) == {INSTALL}
