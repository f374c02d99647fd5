"""`python -m tritter_mem` is `tritter-mem`."""

from tritter_mem.cli.main import main

main()
