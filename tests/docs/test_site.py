"""The manual's site: it builds without a warning, works from a disk, and fits a phone."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.browser.actions import DESKTOP, PHONE, prefer, resize, run, show, wait_until
from tests.browser.conftest import browser, chromium
from tritter_mem.cli.main import COMMANDS, OTHER_NAMES

pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
__all__ = ["browser", "chromium"]
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LOADED = "[...document.querySelectorAll('[src], link')].map((e) => e.src ?? e.href)"
LOOKED_AT = ("index", "models", "commands/plan", "why-did-my-job-die", "architecture")


def build(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs` does."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(source), str(output)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since pages are written into the folder of the sources."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    for included in (ROOT / "CHANGELOG.md", *(ROOT / "reports").rglob("*.md")):
        (folder / included.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(included, folder / included.relative_to(ROOT))
    built = build(folder / "docs", folder / "site")
    assert (built.returncode, built.stderr) == (0, "")
    return folder / "site"


def test_every_command_has_a_page_with_its_options(site: Path) -> None:
    for name in COMMANDS.keys() - OTHER_NAMES.keys():
        page = (site / "commands" / f"{name}.html").read_text()
        assert "--help" in page
        assert f"tritter-mem {name}" in page
    assert "PYTORCH_CUDA_ALLOC_CONF" in (site / "commands" / "plan.html").read_text()


@pytest.mark.parametrize("link", ["nowhere.md", "other.md#nothing"])
def test_a_link_that_leads_nowhere_fails(tmp_path: Path, link: str) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    settings = (DOCS / "conf.py").read_text().split("def setup")[0]
    (docs / "conf.py").write_text(settings.replace("from command_pages import write_pages", ""))
    shutil.copytree(DOCS / "static", docs / "static")
    (docs / "other.md").write_text("# Other\n\n## Part\n")
    page = "# Title\n\n[a link](LINK)\n\n```{toctree}\nother\n```\n"
    (docs / "index.md").write_text(page.replace("LINK", "other.md#part"))
    assert build(docs, tmp_path / "right").returncode == 0
    (docs / "index.md").write_text(page.replace("LINK", link))
    wrong = build(docs, tmp_path / "wrong")
    assert wrong.returncode == 1
    assert link.partition("#")[2] or link in wrong.stderr


def test_pages_load_nothing_from_the_network_and_fit(browser: Any, site: Path) -> None:
    for name in LOOKED_AT:
        page = site / f"{name}.html"
        for size in (DESKTOP, PHONE):
            show(browser, page, size=size)
            loaded = run(browser, LOADED)
            assert any(".js" in address for address in loaded)
            assert all(address.startswith("file:") for address in loaded)
            assert run(browser, "document.documentElement.scrollWidth") <= size[0]
    prefer(browser, "light")
    resize(browser, *DESKTOP)


def test_search_works_from_a_disk(browser: Any, site: Path) -> None:
    browser.get(f"{(site / 'search.html').as_uri()}?q=fragmentation")
    results = "document.querySelectorAll('#search-results li').length"
    wait_until(lambda: run(browser, results) > 2)
