"""The page in a real browser, offline: drawn, sorted, filtered, switched, printed, downloaded."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.browser.actions import (
    DESKTOP,
    PHONE,
    assert_fits_a_desk_and_a_phone,
    drawn,
    picture,
    run,
    show,
    wait_until,
    widest,
)
from tests.report.records import (
    HOSTILE_NAMES,
    hostile,
    many,
    planned_7b,
    record,
    tiny_on_cpu,
    training_1b,
)
from tritter_mem.config.loading import load_profile
from tritter_mem.planner.result import planned_result
from tritter_mem.report.html import render_html
from tritter_mem.report.page import PlotlyJs, write_page
from tritter_mem.results.run import Holding, Result

CASES = {
    "planned": [planned_7b()],
    "measured": [tiny_on_cpu()],
    "training": [training_1b()],
    "compared": many(20),
    "with-context-curves": [planned_result(load_profile("7b-128k-gqa"))],
    "empty": [record(planned_reason="the profile asks for nothing")],
}


def open_page(
    browser: Any,
    folder: Path,
    results: list[Result],
    *,
    size: tuple[int, int] = DESKTOP,
    dark: bool = False,
    plotlyjs: PlotlyJs = "inline",
) -> None:
    """Render results, and open the page at this size and with the system's theme."""
    path = folder / "page.html"
    write_page(path, render_html(results, plotlyjs=plotlyjs), plotlyjs)
    show(browser, path, size=size, dark=dark)


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_page_is_drawn_and_fits_a_desk_and_a_phone(
    browser: Any, tmp_path: Path, screenshots: Path, case: str
) -> None:
    open_page(browser, tmp_path, CASES[case])
    assert_fits_a_desk_and_a_phone(browser, screenshots, case)


def test_first_paint_of_twenty_profiles_is_quick(browser: Any, tmp_path: Path) -> None:
    open_page(browser, tmp_path, [training_1b()] * 20)
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    wait_until(lambda: run(browser, paint) is not None)
    assert run(browser, paint) < 2000


ROWS = "[...document.querySelectorAll('.sortable > tbody > tr:not(.below)')]"


def column(browser: Any, heading: str) -> list[str]:
    index = f"[...document.querySelectorAll('.sortable th button')].findIndex((b) => b.textContent === '{heading}')"  # noqa: E501  # fmt: skip
    rows = f"{ROWS}.filter((r) => !r.hidden)"
    return list(run(browser, f"{rows}.map((r) => r.cells[{index}].textContent)"))


def press(browser: Any, heading: str) -> str:
    """Press a heading; how the table is then sorted."""
    button = browser.find_element("xpath", f"//th/button[.='{heading}']")
    button.click()
    return str(button.find_element("xpath", "..").get_attribute("aria-sort"))


def test_a_table_is_sorted_by_the_number_and_not_by_its_text(browser: Any, tmp_path: Path) -> None:
    open_page(browser, tmp_path, many(20))
    assert press(browser, "Planned") == "ascending"
    sizes = [float(text.split()[0]) for text in column(browser, "Planned")]
    assert sizes == sorted(sizes)
    assert press(browser, "Planned") == "descending"
    assert [float(text.split()[0]) for text in column(browser, "Planned")] == sorted(sizes)[::-1]
    press(browser, "Profile")
    names = column(browser, "Profile")
    assert names == sorted(names)


def test_what_has_no_number_is_sorted_last_both_ways(browser: Any, tmp_path: Path) -> None:
    open_page(browser, tmp_path, many(4))
    for _ in range(2):
        press(browser, "Measured")
        assert column(browser, "Measured")[0] == "12.08 GiB"


def test_a_table_is_filtered_as_one_types(browser: Any, tmp_path: Path) -> None:
    open_page(browser, tmp_path, many(20))
    field = browser.find_element("css selector", "input[type=search]")
    field.send_keys("TRAIN")
    assert column(browser, "Profile") == ["1b-training"]
    assert run(browser, "document.querySelector('.shown').textContent") == "1 of 20"
    field.clear()
    field.send_keys(" ")
    assert len(column(browser, "Profile")) == 20


def test_a_bar_goes_where_its_row_goes_on_a_phone(browser: Any, tmp_path: Path) -> None:
    open_page(browser, tmp_path, many(6), size=PHONE)
    press(browser, "Planned")
    press(browser, "Planned")
    field = browser.find_element("css selector", "input[type=search]")
    field.send_keys("route-0")
    seen = (
        "[...document.querySelectorAll('.sortable > tbody > tr')]"
        ".filter((r) => r.checkVisibility()).map((r) => r.classList.contains('below')"
        " ? r.querySelectorAll('.piece').length : r.cells[0].textContent.trim())"
    )
    found = run(browser, seen)
    assert found[::2] == [f"7b-route-0{n}" for n in range(5)]
    assert all(pieces >= 5 for pieces in found[1::2])
    assert len(found) == 10


def modules(*names: str) -> Result:
    result = training_1b()
    assert result.simulated
    held = tuple(
        Holding(module=name, component="weights", allocated_bytes=1000 - at)
        for at, name in enumerate(names)
    )
    return replace(result, simulated=replace(result.simulated, held_at_peak=held))


def test_a_module_is_found_among_all_by_its_name_and_number(browser: Any, tmp_path: Path) -> None:
    names = [f"net.layers.7.part{chr(97 + n)}" for n in range(20)]
    open_page(browser, tmp_path, [modules(*names)])
    shown = "[...document.querySelectorAll('[data-more]')].filter((r) => !r.hidden).length"
    assert run(browser, shown) == 0
    field = browser.find_element("css selector", "input[type=search]")
    field.send_keys("layers.7.PARTt")
    assert run(browser, shown) == 1
    assert run(browser, "document.querySelector('.shown').textContent") == "1 of 20"
    field.clear()
    field.send_keys(" ")
    assert run(browser, shown) == 0
    browser.find_element("css selector", "button.all").click()
    assert run(browser, shown) == 8


def test_the_keyboard_reaches_and_works_everything(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_page(browser, tmp_path, many(3))
    reached = []
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(run(browser, "document.activeElement.outerHTML.slice(0, 90)"))
    joined = "\n".join(reached)
    for part in ("#main", "results-json", 'id="theme"', 'type="search"', "Headroom", "<summary>"):
        assert part in joined
    browser.find_element("css selector", "details.profile > summary").send_keys(Keys.ENTER)
    assert run(browser, "document.querySelector('details.profile').open")


def ink(browser: Any) -> str:
    return str(run(browser, "getComputedStyle(document.body).color"))


def bar_color(browser: Any) -> str:
    bars = "document.querySelector('.drawing .scatterlayer .js-fill')"
    return str(run(browser, f"getComputedStyle({bars}).fill"))


def test_the_theme_follows_the_system_until_the_button_is_pressed(
    browser: Any, tmp_path: Path
) -> None:
    open_page(browser, tmp_path, [training_1b()], dark=True)
    run(browser, "document.querySelector('.drawing').scrollIntoView()")
    wait_until(lambda: drawn(browser) > 0)
    dark = (ink(browser), bar_color(browser))
    theme = browser.find_element("id", "theme")
    assert theme.get_attribute("aria-label") == "Switch to the light theme"
    theme.click()
    assert theme.get_attribute("aria-label") == "Switch to the dark theme"
    wait_until(lambda: bar_color(browser) != dark[1])
    light = (ink(browser), bar_color(browser))
    assert light[0] != dark[0]
    theme.click()
    wait_until(lambda: (ink(browser), bar_color(browser)) == dark)


def test_charts_of_a_closed_profile_are_drawn_when_it_opens(browser: Any, tmp_path: Path) -> None:
    open_page(browser, tmp_path, many(3))
    count = "document.querySelectorAll('.profile .js-plotly-plot').length"
    assert run(browser, count) == 0
    browser.find_element("css selector", ".profile:last-of-type > summary").click()
    run(browser, "document.querySelector('.profile .drawing').scrollIntoView()")
    wait_until(lambda: run(browser, count) > 0)


def test_printing_shows_every_profile_in_light_and_leaves_the_page_as_it_was(
    browser: Any, tmp_path: Path, screenshots: Path
) -> None:
    open_page(browser, tmp_path, many(3), dark=True)
    before = run(browser, "[innerWidth, document.querySelectorAll('[open]').length]")
    pages = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    document = base64.b64decode(pages["data"])
    (screenshots / "compared.pdf").write_bytes(document)
    assert document.startswith(b"%PDF")
    assert document.count(b"/Type /Page\n") >= 3
    assert run(browser, "[innerWidth, document.querySelectorAll('[open]').length]") == before
    assert run(browser, "document.documentElement.dataset.theme ?? null") is None
    # Every chart of every profile was drawn for the paper.
    assert run(browser, "document.querySelectorAll('.drawing:not(.js-plotly-plot)').length") == 0


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_the_data_is_downloaded_whole(browser: Any, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "downloads"
    behavior = {"behavior": "allow", "downloadPath": str(folder)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
    open_page(browser, tmp_path, [training_1b()])
    browser.find_element("css selector", f"[data-download='results-{kind}']").click()
    file = folder / f"tritter-mem.{kind}"
    wait_until(file.exists)
    if kind == "json":
        assert json.loads(file.read_text()) == json.loads(json.dumps(training_1b().to_dict()))
    else:
        assert file.read_text().startswith("profile,kind,device,group,name,bytes\n1b-training,")


@pytest.mark.parametrize(
    "names",
    [HOSTILE_NAMES, HOSTILE_NAMES[:1], HOSTILE_NAMES[-1:]],
    ids=["all together", "a script", "a long name"],
)
def test_hostile_names_show_as_text(
    browser: Any, tmp_path: Path, names: tuple[str, ...], screenshots: Path
) -> None:
    open_page(browser, tmp_path, [hostile(name) for name in names], size=PHONE)
    title = run(browser, "document.title")
    assert title.endswith(" – tritter-mem")  # noqa: RUF001
    assert title != "owned"
    browser.execute_script("document.querySelectorAll('.profile').forEach((p) => p.open = true)")
    picture(browser, screenshots / f"hostile-{len(names)}-{len(names[0])}.png")
    assert run(browser, "document.querySelectorAll('img, main script:not([type])').length") == 0
    assert run(browser, "document.querySelectorAll('.drawing a, .drawing b').length") == 0
    assert widest(browser) <= PHONE[0]


def test_a_library_beside_the_page_is_found(browser: Any, tmp_path: Path) -> None:
    open_page(browser, tmp_path, [training_1b()], plotlyjs="directory")
    run(browser, "document.querySelector('.drawing').scrollIntoView()")
    wait_until(lambda: drawn(browser) > 0)


def test_without_the_library_the_numbers_are_shown(chromium: Any, tmp_path: Path) -> None:
    open_page(chromium, tmp_path, [training_1b()], plotlyjs="directory")
    (tmp_path / "plotly.min.js").unlink()
    chromium.refresh()
    assert "could not be loaded" in chromium.find_element("css selector", ".drawing").text
    assert run(chromium, "document.querySelectorAll('.chart details:not([open])').length") == 0
    chromium.get_log("browser")  # the missing library is what the console complains about
