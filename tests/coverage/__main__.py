"""`make coverage`: lines and branches of five packages that their quick tests reach.

What the tests of `selection.py` do not reach is listed with its reason in `unreached.toml`: by
file, since lines move. A file that is not listed and not reached whole is named behind the report.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.coverage.selection import PACKAGES, TESTS

ROOT = Path(__file__).resolve().parents[2]
LISTED = Path(__file__).parent / "unreached.toml"
SETTINGS = """[run]
branch = true
source = {sources}
data_file = {out}/coverage
[report]
exclude_also =
    if TYPE_CHECKING:
    raise NotImplementedError
    class .*\\(Protocol\\):
"""


def main() -> int:
    """Print the report, and where the list is not true; 1 where a test fails."""
    out = ROOT / "out" / "coverage"
    out.mkdir(parents=True, exist_ok=True)
    settings, report = out / "coveragerc", out / "coverage.json"
    sources = ", ".join(f"tritter_mem/{name}" for name in PACKAGES)
    settings.write_text(SETTINGS.format(sources=sources, out=out))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--numprocesses", "auto", "--dist", "worksteal",
         "--hypothesis-seed=0", "-m", "covered",
         "--cov", f"--cov-config={settings}", "--cov-report=term:skip-covered",
         f"--cov-report=json:{report}", *map(str, TESTS)],
        cwd=ROOT, check=False,
    )  # fmt: skip
    found = json.loads(report.read_text())["files"]
    unreached = {name for name, file in found.items() if file["missing_lines"]}
    listed = [name for entry in tomllib.loads(LISTED.read_text())["unreached"]
              for name in entry["files"]]  # fmt: skip
    for name in sorted(set(listed) - unreached):
        print(f"{LISTED.name}: {name} is reached whole, or is not there: take it from the list")
    wrong = [f"{name}: not reached: {_lines(found[name])}; cover it, or list it with its reason"
             for name in sorted(unreached - set(listed))]  # fmt: skip
    for line in wrong:
        print(f"{LISTED.name}: {line}")
    return 1 if done.returncode else 0


def _lines(file: dict[str, list[int]]) -> str:
    return ", ".join(map(str, file["missing_lines"][:20]))


if __name__ == "__main__":
    sys.exit(main())
