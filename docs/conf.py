"""The documentation's site: `make docs` builds it, and fails on a link that leads nowhere."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from command_pages import write_pages

project = "tritter-mem"
extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["examples"]

html_theme = "furo"
html_title = project
html_show_copyright = False
html_show_sourcelink = False
html_show_search_summary = False  # a page that is opened from a disk cannot read others
html_static_path = ["static"]
html_css_files = ["site.css"]

myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"  # no prompts, no output

# Output is shown in part, and what a language's lexer makes of it is no error of the page.
suppress_warnings = ["misc.highlighting_failure"]


def setup(app: Any) -> None:
    """Write the pages that come from the code."""
    app.connect("builder-inited", lambda _: write_pages())
