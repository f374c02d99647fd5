"""The pictures of the documents: `python -m tests.browser.screenshots [FOLDER]`.

Every page is made by the commands that it shows, and drawn by the browser of the tests. With a
folder, each page is also put there whole, at two widths and in both themes, to be looked at.
"""

import base64
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.browser.actions import (
    drawn,
    picture,
    problems,
    resize,
    run,
    show,
    visible,
    wait_until,
)
from tests.browser.conftest import start_chromium
from tests.browser.rehearse_train import snapshot_of_training
from tritter_mem.units import GiB

IMAGES = Path(__file__).parents[2] / "docs" / "images"
EXAMPLES = IMAGES.parent / "examples"
WIDTH, EDGE = 1100, 16
SIZES = {"desktop": (1400, 900), "phone": (400, 800)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A part of a page: from one heading to before another; empty: from its top, to its end."""

    name: str
    page: str
    first: str = ""
    behind: str = ""


SHOTS = (
    Shot(name="report", page="profile", behind="Alive at the allocated peak (simulated)"),
    Shot(name="report-peak", page="profile", first="Alive at the allocated peak (simulated)",
         behind="Environment"),
    Shot(name="replay", page="replay", behind="as recorded"),
)  # fmt: skip


def make_pages(folder: Path) -> dict[str, Path]:
    """Each page, by its name."""
    snapshot = snapshot_of_training(folder / "train.pickle", capacity_bytes=int(9.6 * GiB))
    commands = {
        "profile": ["profile", "qwen3-8b", "--context", "16k", "--gpu", "rtx-4090"],
        "replay": ["replay", str(snapshot)],
        "plan": ["plan", "qwen3-32b", "--gpu", "h100"],
        "plans": ["plan", "qwen3-32b", "qwen3-30b-a3b", "--context", "64k", "--gpu", "h200"],
        "out-of-memory": ["replay", str(EXAMPLES / "out-of-memory.pickle")],
    }
    pages = {name: folder / f"{name}.html" for name in commands}
    for name, command in commands.items():
        whole = [sys.executable, "-m", "tritter_mem", *command, "--html", str(pages[name])]
        done = subprocess.run(whole, check=False, stdout=subprocess.DEVNULL)
        assert done.returncode in (0, 1), whole
    return pages


def take(browser: Any, shot: Shot, page: Path) -> bytes:
    """A picture of a part of a page, in light."""
    show(browser, page, size=(WIDTH, 900))
    resize(browser, WIDTH, run(browser, "document.documentElement.scrollHeight"))
    wait_until(lambda: drawn(browser) == visible(browser))
    top = top_of(browser, shot.first) if shot.first else EDGE
    end = top_of(browser, shot.behind) if shot.behind else run(browser, "innerHeight")
    clip = {"x": 0, "y": top - EDGE, "width": WIDTH, "height": end - top, "scale": 1}
    found = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip})
    return base64.b64decode(found["data"])


def top_of(browser: Any, heading: str) -> float:
    """Where a heading begins, in pixels from the page's top."""
    found = f"[...document.querySelectorAll('h2')].find((h) => h.textContent === '{heading}')"
    return float(run(browser, f"{found}.getBoundingClientRect().top + scrollY"))


@contextmanager
def browsing(folder: Path) -> Iterator[Any]:
    browser = start_chromium(folder)
    try:
        yield browser
    finally:
        browser.quit()


def main(whole: Path | None) -> None:
    with tempfile.TemporaryDirectory() as name, browsing(Path(name) / "chromium") as browser:
        pages = make_pages(Path(name))
        for shot in SHOTS:
            (IMAGES / f"{shot.name}.png").write_bytes(take(browser, shot, pages[shot.page]))
        if whole is None:
            return
        whole.mkdir(parents=True, exist_ok=True)
        for page, path in pages.items():
            for where, size in SIZES.items():
                for theme in ("light", "dark"):
                    show(browser, path, size=size, dark=theme == "dark")
                    picture(browser, whole / f"{page}-{where}-{theme}.png")
                    for problem in problems(browser):
                        print(f"{page}, {where}, {theme}: {problem}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
