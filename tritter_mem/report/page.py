"""A self-contained HTML page: one template, one style sheet, one script, Plotly once."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tritter_mem.errors import UsageError
from tritter_mem.results.writing import write_text_atomically

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

PlotlyJs = Literal["inline", "cdn", "directory"]
PLOTLY_FILE = "plotly.min.js"
JSON: dict[str, Any] = {"allow_nan": False, "separators": (",", ":")}
TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, *, plotlyjs: PlotlyJs, **content: Any) -> str:
    """Render a template that extends `base.html.j2`.

    Args:
        template: a file name under `templates/`.
        plotlyjs: where the chart library comes from: `inline` in the page, `cdn` from the network,
            `directory` from `plotly.min.js` beside the page.
        content: what the template draws; every text is escaped.

    Raises:
        UsageError: `plotlyjs` is another word.
    """
    if plotlyjs not in get_args(PlotlyJs):
        raise UsageError(f"plotlyjs: got {plotlyjs!r}, expected inline, cdn or directory")
    page = _environment().get_template(template)
    return page.render(plotlyjs=plotlyjs, plotly=_plotly(plotlyjs), **content)


def write_page(path: Path, page: str, plotlyjs: PlotlyJs) -> None:
    """Write a page, and with `directory` the chart library beside it, where the page has charts.

    Raises:
        OutputError: one of them cannot be written.
    """
    if plotlyjs == "directory" and f'src="{PLOTLY_FILE}"' in page:
        write_text_atomically(path.parent / PLOTLY_FILE, plotly_source())
    write_text_atomically(path, page)


def packed(data: object) -> str:
    """Data for a page as JSON, compressed, in base64; `page.js` unpacks it when it is asked for.

    A run's record has tens of thousands of numbers, and a page must stay small.
    """
    text = json.dumps(data, **JSON).encode()
    return base64.b64encode(gzip.compress(text, mtime=0)).decode()


def breakable(text: str) -> Markup:
    """Text that a narrow page may also break behind a dot, a slash, an underscore, a colon.

    So a module's name ends a line between its parts and not inside of a word.
    """
    from markupsafe import Markup

    return Markup("<wbr>").join(re.split(r"(?<=[._/:,=])(?=\w)(?!\d)", text))


@cache
def plotly_source() -> str:
    """The chart library, minified."""
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """What a script tag needs: the source itself, or where it is and what it must hash to."""

    source: str = ""
    url: str = ""
    integrity: str = ""


def _plotly(plotlyjs: PlotlyJs) -> Library:
    if plotlyjs == "inline":
        return Library(source=plotly_source())
    if plotlyjs == "directory":
        return Library(url=PLOTLY_FILE)
    from plotly.offline import get_plotlyjs_version

    digest = base64.b64encode(hashlib.sha256(plotly_source().encode()).digest()).decode()
    url = f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"
    return Library(url=url, integrity=f"sha256-{digest}")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` then escapes <, >, & and everything outside ASCII, U+2028 with it.
    environment.policies["json.dumps_kwargs"] = JSON
    environment.filters["packed"] = packed
    environment.filters["breakable"] = breakable
    return environment
