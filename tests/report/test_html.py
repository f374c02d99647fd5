"""The page: whole, small, offline, and text from files stays text. Browser tests draw it."""

import base64
import gzip
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.records import (
    HOSTILE_NAMES,
    hostile,
    many,
    planned_7b,
    record,
    timeline,
    tiny_on_cpu,
    training_1b,
)
from tritter_mem.errors import OutputError, UsageError
from tritter_mem.report.html import render_html
from tritter_mem.report.page import PLOTLY_FILE, plotly_source, write_page
from tritter_mem.results.run import Holding, Result
from tritter_mem.text import printable

VOID = {"meta", "link", "br", "input", "wbr"}


class Page(HTMLParser):
    """Tags in order, the text of scripts apart, and whether every tag was closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        else:
            self.text += data

    def data(self, name: str) -> object:
        """The data of the script with this id."""
        scripts = [attributes for tag, attributes in self.tags if tag == "script"]
        index = next(i for i, attributes in enumerate(scripts) if attributes.get("id") == name)
        return json.loads(gzip.decompress(base64.b64decode(self.scripts[index])))


def render(*results: Result) -> Page:
    # The library is left out: it is the same on every page, and slow to parse.
    page = Page(render_html(list(results), plotlyjs="directory").replace('src="plotly', 'x="'))
    assert page.open == []
    return page


CASES = {
    "planned": [planned_7b()],
    "measured": [tiny_on_cpu()],
    "training": [training_1b()],
    "compared": many(5),
    "empty": [record()],
    "empty among others": [record(), planned_7b()],
}


@pytest.mark.parametrize("case", CASES)
def test_pages_are_well_formed(case: str) -> None:
    page = Page(render_html(CASES[case], plotlyjs="directory").replace("></script>", ">0</script>"))
    assert page.open == []


def test_the_verdict_comes_first_with_one_number() -> None:
    text = " ".join(render(planned_7b()).text.split())
    assert "7b-128k inference · 128K tokens" in text
    assert "5.33 GiB over budget does not fit: needs 20.33 GiB (planned), 5.33 GiB" in text
    assert text.index("5.33 GiB over") < text.index("Budget by component")


def test_several_profiles_say_how_many_fit() -> None:
    text = " ".join(render(*many(6)).text.split())
    assert "6 profiles compared 4 of 6 fit 2 over budget" in text
    assert "2 profiles compared no verdict" in " ".join(render(record(), record()).text.split())


@pytest.mark.parametrize(
    ("results", "tone"),
    [
        ([planned_7b(), training_1b()], "verdict "),
        ([training_1b(), training_1b()], "verdict good"),
        ([planned_7b(), planned_7b()], "verdict bad"),
        ([record(), record()], "verdict "),
    ],
)
def test_routes_are_alarming_only_where_none_fits(results: list[Result], tone: str) -> None:
    (first, *_) = [a for tag, a in render(*results).tags if tag == "section"]
    assert first["class"] == tone


def bars(page: str) -> list[list[tuple[str, float, float]]]:
    """Colour, left end and width of each piece, by bar."""
    tracks = re.findall(r'<span class="track".*?</span>\n</td>', page, re.DOTALL)
    piece = r"left:([\d.]+)%;width:([\d.]+)%;background:var\((--[a-z-]+)\)"
    found = [re.findall(piece, track) for track in tracks]
    return [[(c, float(left), float(width)) for left, width, c in pieces] for pieces in found]


def test_the_budget_is_drawn_once_each_part_from_where_the_last_ends() -> None:
    result = planned_7b()
    page = render_html([result], plotlyjs="directory")
    assert "<figure" not in page.partition("Allocated peak by phase")[0]
    drawn = [pieces for pieces in bars(page) if pieces]
    parts, totals = drawn[:6], drawn[6:]
    assert [pieces[0][0] for pieces in parts] == [
        "--c-weights", "--c-embeddings", "--c-kv-cache", "--c-activations", "--c-logits",
        "--c-workspace",
    ]  # fmt: skip
    end = 0.0
    for (_, left, width), *_ in parts:
        assert left == pytest.approx(end, abs=0.002)
        end = left + width
    needs = result.by_kind()["planned"].footprint_bytes
    allocated, context, device = totals
    assert [width for *_, width in allocated] == [width for (_, _, width), *_ in parts]
    assert context[0][:2] == ("--c-context", pytest.approx(end, abs=0.002))
    assert sum(width for *_, width in device) == pytest.approx(100, abs=0.01)
    assert f"--limit-at: {100 * 15 * 2**30 / needs:.2f}%" in page


def test_every_module_is_in_the_page_and_few_are_shown_first() -> None:
    result = training_1b()
    assert result.simulated
    modules = tuple(
        Holding(module=f"net.{letter}", component="weights", allocated_bytes=1000 - ord(letter))
        for letter in "abcdefghijklmnopqrst"
    )
    wide = replace(result, simulated=replace(result.simulated, held_at_peak=modules))
    page = render_html([wide], plotlyjs="directory")
    section = page.partition("Alive at the allocated peak")[2].partition("<figure")[0]
    assert section.count('scope="row"') == 20
    assert section.count("data-more hidden") == 20 - 12
    assert "Show all 20 rows" in section
    assert "Find a module" in section


def test_a_profile_without_a_verdict_is_counted_apart() -> None:
    text = " ".join(render(planned_7b(), training_1b(), record()).text.split())
    assert "1 of 3 fit 1 over budget, 1 without a verdict" in text


def test_every_chart_has_a_name_and_a_table_behind_it() -> None:
    page = render_html([training_1b()], plotlyjs="directory")
    figures = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    assert len(figures) == 4
    for figure in figures:
        assert re.search(r'role="img" aria-label="[^"]{20,}"', figure)
        assert "<details" in figure
        assert "<table" in figure


def test_every_input_and_button_has_a_name() -> None:
    page = render_html(many(3), plotlyjs="directory")
    fields = re.findall(r"<label>[^<]+<input[^>]*></label>", page)
    assert len(fields) == page.count("<input") > 0
    assert not re.findall(r"<button[^>]*>\s*</button>", page)


def test_the_data_is_in_the_page() -> None:
    page = render(training_1b())
    assert page.data("results-json") == json.loads(json.dumps(training_1b().to_dict()))
    assert str(page.data("results-csv")).startswith("profile,kind,device,group,name,bytes\n")
    several = render(*many(3)).data("results-json")
    assert isinstance(several, list)
    assert len(several) == 3


def tags_of(page: Page) -> list[str]:
    """All but the places at which a long name may break."""
    return [tag for tag, _ in page.tags if tag != "wbr"]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
@pytest.mark.parametrize("count", [1, 2])
def test_hostile_names_are_text_and_make_no_tag(name: str, count: int) -> None:
    harmless = tags_of(render(*[hostile("plain")] * count))
    page = render(*[hostile(name)] * count)
    assert tags_of(page) == harmless
    assert printable(name) in page.text
    raw = render_html([hostile(name)] * count, plotlyjs="directory")
    assert not set(raw) & set("\x00\x1b\u202e\u2028")


def test_no_script_can_be_closed_from_within_data() -> None:
    page = render_html([hostile("</script><!-- <script>")], plotlyjs="directory")
    for script in re.findall(r'<script type="application/json".*?</script>', page, re.DOTALL):
        body = script.split(">", 1)[1].removesuffix("</script>")
        assert not set(body) & set("<>&\u2028\u2029")
        json.loads(body)


def test_nothing_is_fetched_by_a_page_that_has_everything() -> None:
    page = render_html([training_1b()]).replace(plotly_source(), "")
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:,)""", page)
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page


def test_from_the_network_the_library_is_checked_by_its_hash() -> None:
    page = render_html([training_1b()], plotlyjs="cdn")
    found = re.findall(
        r'src="https://cdn\.plot\.ly/plotly-[\d.]+\.min\.js" integrity="sha256-', page
    )
    assert len(found) == 1
    assert len(page) < 200_000


def test_beside_the_page_the_library_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "out" / "page.html"
    write_page(path, render_html([training_1b()], plotlyjs="directory"), "directory")
    assert sorted(file.name for file in path.parent.iterdir()) == ["page.html", PLOTLY_FILE]
    assert (path.parent / PLOTLY_FILE).read_text() == plotly_source()


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_page(tmp_path, "page", "inline")


def test_an_unknown_place_for_the_library_is_refused() -> None:
    with pytest.raises(UsageError, match="expected inline, cdn or directory"):
        render_html([planned_7b()], plotlyjs="here")  # type: ignore[arg-type]


def heavy() -> Result:
    """Training with all kinds of number, and 20,000 points in each timeline."""
    result = training_1b()
    measured = result.by_kind()["measured"]
    long = timeline(measured.components, measured.reserved_peak_bytes or 0, rows=20_000)
    uses = {kind: replace(e, timeline=long) for kind, e in result.by_kind().items()}
    return replace(result, **uses)  # type: ignore[arg-type]


def test_twenty_profiles_stay_under_six_megabytes() -> None:
    assert len(render_html([heavy()] * 20).encode()) <= 6_000_000


def test_thinning_keeps_the_peaks_in_the_page() -> None:
    data = json.loads(json.dumps(render(heavy()).data("results-json")))
    full = heavy().by_kind()["measured"].timeline
    assert full
    kept = data["measured"]["timeline"]["rows"]
    assert len(kept) < len(full.rows)
    assert max(row[2] for row in kept) == max(row[2] for row in full.rows)


def test_units_are_as_asked() -> None:
    page = html.unescape(render_html([planned_7b()], plotlyjs="directory", units="GB"))
    assert "needs 21.83 GB (planned), 5.72 GB over the budget of 16.11 GB" in page
    assert "GiB" not in page.split("<main")[1].split("</main>")[0]
