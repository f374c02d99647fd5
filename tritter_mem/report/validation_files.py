"""Finished cases of a validation on disk: one result a file, named by the case and its key."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tritter_mem.config.gpus import slug
from tritter_mem.errors import InputError
from tritter_mem.report.files import check_writable, read_results, write_text_atomically
from tritter_mem.results import Result
from tritter_mem.validation import Validated, Validation

DOCUMENT = "validation.json"
CASES = "cases"
_KEY = "[0-9a-f]{16}"


class CaseFiles:
    """The folder of a validation: `validation.json`, and finished cases under `cases`.

    Args:
        folder: made when something is written.

    Raises:
        OutputError: it does not take files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        check_writable(folder / DOCUMENT)
        check_writable(folder / CASES / "a.json")

    def read(self, name: str, key: str) -> Result | None:
        """A finished case; None where there is none that can be read."""
        try:
            results = read_results(self._path(name, key))
        except InputError:
            return None
        return results[0] if len(results) == 1 and results[0].measured is not None else None

    def write(self, case: Validated) -> None:
        """Keep a finished case in place of those of its name under other conditions.

        Raises:
            OutputError: it cannot be written.
        """
        if case.result is None or case.kept or case.status == "not measured":
            return
        path = self._path(case.name, case.key)
        write_text_atomically(path, json.dumps(case.result.to_dict(), ensure_ascii=False) + "\n")
        for other in path.parent.iterdir():
            if other != path and re.fullmatch(rf"{_slug(case.name)}-{_KEY}\.json", other.name):
                other.unlink()

    def write_document(self, validation: Validation) -> None:
        """Write the figures of all cases.

        Raises:
            OutputError: they cannot be written.
        """
        text = json.dumps(validation.to_dict(), indent=1, ensure_ascii=False) + "\n"
        write_text_atomically(self._folder / DOCUMENT, text)

    def _path(self, name: str, key: str) -> Path:
        return self._folder / CASES / f"{_slug(name)}-{key}.json"


def folder_of(device: str) -> Path:
    """`reports/nvidia-h100-80gb-hbm3` for NVIDIA H100 80GB HBM3."""
    return Path("reports") / _slug(device)


def _slug(name: str) -> str:
    return slug(name)[:80] or "unnamed"
