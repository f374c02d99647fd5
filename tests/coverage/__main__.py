"""`make coverage`: lines and branches of five packages that their quick tests reach.

The tests of these packages, and the quick ones that use them, run once more with coverage. What
they do not reach is listed with its reason in `unreached.toml`: by file, since lines move. A file
that is not listed is reached whole.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTED = Path(__file__).parent / "unreached.toml"
PACKAGES = ("results", "config", "models", "allocator", "recordings")
TESTS = ("results", "config", "models", "allocator", "recordings", "check",
         "rehearsal/test_launch.py")  # fmt: skip
SLOW = ("models/test_huggingface_modules.py", "models/test_bundled_models.py",
        "recordings/test_recorded_snapshots.py")  # fmt: skip
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
    """Print the report; 1 where the list is not true, or a test fails."""
    out = ROOT / "out" / "coverage"
    out.mkdir(parents=True, exist_ok=True)
    settings, report = out / "coveragerc", out / "coverage.json"
    sources = ", ".join(f"tritter_mem/{name}" for name in PACKAGES)
    settings.write_text(SETTINGS.format(sources=sources, out=out))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--numprocesses", "auto", "--cov",
         "--hypothesis-seed=0",
         f"--cov-config={settings}", "--cov-report=term:skip-covered",
         f"--cov-report=json:{report}", *(f"tests/{name}" for name in TESTS),
         *(f"--ignore=tests/{name}" for name in SLOW)],
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
    return 1 if wrong or done.returncode else 0


def _lines(file: dict[str, list[int]]) -> str:
    return ", ".join(map(str, file["missing_lines"][:20]))


if __name__ == "__main__":
    sys.exit(main())
