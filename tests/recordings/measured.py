"""Memory histories that `make gpu` recorded on an H200."""

import tarfile
from pathlib import Path

EVIDENCE = Path(__file__).parents[2] / "reports" / "nvidia-h200" / "files.tar.gz"


def measured_history(name: str, folder: Path) -> Path:
    """Extract the history of a run into a folder; returns its file."""
    file = f"scripts/{name}/history.pickle"
    with tarfile.open(EVIDENCE) as files:
        files.extract(f"./{file}", folder, filter="data")
    return folder / file
