"""The examples of the documentation run."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = re.findall(r"```python\n(.*?)```", (DOCS / "allocator.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_of_the_allocator_page_run(code: str) -> None:
    exec(compile(code, "docs/allocator.md", "exec"), {})  # noqa: S102  (our own)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2
