"""Seeds of tests with random tensors."""

import os
import secrets
import zlib


def seed_of(test: str) -> int:
    """A fresh seed each run, and in CI always that of this test.

    It is printed, so a failure shows it; TRITTER_TEST_SEED repeats it.
    """
    fresh = zlib.crc32(test.encode()) if "CI" in os.environ else secrets.randbits(31)
    number = int(os.environ.get("TRITTER_TEST_SEED") or fresh)
    print(f"TRITTER_TEST_SEED={number}")
    return number
