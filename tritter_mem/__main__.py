"""Where `tritter-mem` and `python -m tritter_mem` begin."""

from __future__ import annotations

import gc
import signal

from tritter_mem import ending
from tritter_mem.errors import EXIT_INTERRUPTED


def main() -> None:
    """Run the command line and exit."""
    # Start-up makes many objects and hardly a cycle: looking for cycles as often as a server has to
    # would take a sixth of it.
    gc.set_threshold(100_000)
    try:
        ending.catch_signals()
        ending.open_missing_streams()
        from tritter_mem.cli.main import main as run

        run()
    except SystemExit:
        raise
    except BaseException:
        if not ending.interrupted():
            raise
        ending.say("interrupted")  # an import was, perhaps, which may make any error of it
        raise SystemExit(EXIT_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing left that could be ended
        gc.freeze()  # or Python would look through all of it once more, only to end


if __name__ == "__main__":
    main()
