"""Where a command's results go: the terminal or JSON on standard output, a file, a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tritter_mem.cli.listing import print_json
from tritter_mem.errors import UsageError

if TYPE_CHECKING:
    from tritter_mem.results import Result


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What was asked for, as the options of the same names say."""

    as_json: bool
    output: Path | None
    html: Path | None
    plotlyjs: Literal["inline", "cdn", "directory"]
    units: str

    def check(self, *others: Path | None) -> None:
        """Find what cannot be written before the run rather than after it.

        Raises:
            UsageError: two outputs, `others` among them, are one file.
            OutputError: one cannot be written.
        """
        from tritter_mem.report.files import check_writable

        paths = [path for path in (self.output, self.html, *others) if path is not None]
        for path in paths:
            if [other.resolve() for other in paths].count(path.resolve()) > 1:
                raise UsageError(f"found one file for both of two outputs, {path}; name two")
            check_writable(path)

    def finish(self, results: Sequence[Result]) -> None:
        """Remember, write and show what there is."""
        if not results:
            return
        from tritter_mem.history import remember

        remember(results)
        try:
            self._write(results)
        finally:
            self._show(results)

    def _write(self, results: Sequence[Result]) -> None:
        import json

        from tritter_mem.report.files import write_text_atomically

        if self.output is not None:
            text = json.dumps(_document(results), ensure_ascii=False)
            write_text_atomically(self.output, f"{text}\n")
        if self.html is not None:
            from tritter_mem.report.html import render_html
            from tritter_mem.report.page import write_page

            page = render_html(results, plotlyjs=self.plotlyjs, units=self.units)
            write_page(self.html, page, self.plotlyjs)

    def _show(self, results: Sequence[Result]) -> None:
        from tritter_mem.report.terminal import make_console, render_results

        if self.as_json:
            print_json(_document(results))
        else:
            render_results(results, make_console(), self.units)


def _document(results: Sequence[Result]) -> object:
    """One record, or a list of them where several profiles were asked for."""
    records = [result.to_dict() for result in results]
    return records[0] if len(records) == 1 else records
