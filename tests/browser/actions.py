"""What tests do with a page: open it, size it, look at its charts, take its picture."""

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DESKTOP, PHONE = (1400, 900), (400, 800)


def show(browser: Any, path: Path, *, size: tuple[int, int] = DESKTOP, dark: bool = False) -> None:
    """Open a page at this size and with the system's theme."""
    prefer(browser, "dark" if dark else "light")
    resize(browser, *size)
    browser.get(path.as_uri())


def prefer(browser: Any, theme: str) -> None:
    """Set the system's theme."""
    feature = {"name": "prefers-color-scheme", "value": theme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def resize(browser: Any, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def run(browser: Any, script: str) -> Any:
    return browser.execute_script(f"return {script}")


def drawn(browser: Any) -> int:
    """How many charts are on the page with something drawn in them."""
    done = "[...document.querySelectorAll('.drawing')].filter((d) => d.querySelector('.points path, .scatterlayer path, .heatmaplayer image, .iciclelayer path'))"  # noqa: E501
    return int(run(browser, f"{done}.length"))


def visible(browser: Any) -> int:
    """How many charts there are on the page, in what is not folded away."""
    charts = "[...document.querySelectorAll('.drawing')].filter((d) => d.checkVisibility())"
    return int(run(browser, f"{charts}.length"))


def widest(browser: Any) -> int:
    """How wide the page is, charts included, and tables that scroll by themselves not."""
    right = (
        "[...document.querySelectorAll('.drawing svg')].map((e) => e.getBoundingClientRect().right)"
    )
    return int(run(browser, f"Math.max(document.documentElement.scrollWidth, ...{right})"))


def picture(browser: Any, path: Path) -> None:
    """The whole page as it looks at this width."""
    height = run(browser, "document.documentElement.scrollHeight")
    width = run(browser, "innerWidth")
    resize(browser, width, height)
    wait_until(lambda: drawn(browser) == visible(browser))
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    path.write_bytes(base64.b64decode(shot["data"]))


LAYOUT = (Path(__file__).parent / "layout.js").read_text()


def problems(browser: Any) -> list[str]:
    """What is too wide, too pale, clipped, broken or covered on the page as it is drawn now."""
    return list(browser.execute_script(LAYOUT))


def assert_fits_a_desk_and_a_phone(browser: Any, screenshots: Path, name: str) -> None:
    """In both themes every chart in sight is drawn and nothing is wrong; pictures are kept."""
    for where, size in (("desktop", DESKTOP), ("phone", PHONE)):
        for theme in ("light", "dark"):
            prefer(browser, theme)
            resize(browser, *size)
            wait_until(lambda width=size[0]: widest(browser) <= width)
            picture(browser, screenshots / f"{name}-{where}-{theme}.png")
            assert drawn(browser) == visible(browser)
            assert problems(browser) == [], f"{where}, {theme}"
