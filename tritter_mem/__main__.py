"""Where `tritter-mem` and `python -m tritter_mem` begin."""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command line and exit."""
    # Start-up makes many objects and hardly a cycle: looking for cycles as often as a server has to
    # would take a sixth of it.
    gc.set_threshold(100_000)
    from tritter_mem.cli.main import main as run

    try:
        run()
    finally:
        gc.freeze()  # or Python would look through all of it once more, only to end


if __name__ == "__main__":
    main()
