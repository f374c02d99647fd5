"""Random workloads for property tests, and how to run one."""

from typing import NamedTuple

from hypothesis import strategies as st

from tritter_mem.allocator.blocks import Block
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.snapshot import RecordingAllocator
from tritter_mem.results.segments import PrivateStream, Stream
from tritter_mem.units import MiB

CONFS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:32",
    "roundup_power2_divisions:4",
    "garbage_collection_threshold:0.5",
    "large_segment_size_mb:32",
    "expandable_segments:True,max_split_size_mb:64",
    "per_process_memory_fraction:0.5",
)


class Step(NamedTuple):
    """What to do: with a size, or with the live or waiting block at a position in their list."""

    what: str
    size: int = 0
    position: int = 0
    stream: Stream = 0


# Sizes on both sides of every limit, and anything between.
SIZES = st.one_of(
    st.sampled_from(
        [1, 511, 512, 513, MiB, MiB + 1, 2 * MiB, 10 * MiB - 1, 10 * MiB, 20 * MiB, 64 * MiB]
    ),
    st.integers(1, 4096),
    st.integers(1, 100 * MiB),
)
STREAMS = st.sampled_from([0, 0, 0, 7, PrivateStream(0, (0, 3))])
POSITIONS = st.integers(0, 1 << 16)
ALLOC = st.builds(Step, st.just("alloc"), size=SIZES, stream=STREAMS)
FREE = st.builds(Step, st.just("free"), position=POSITIONS)
RARE = st.builds(Step, st.sampled_from(["request", "complete", "empty"]), position=POSITIONS)
AT_ONCE = st.lists(st.one_of(ALLOC, ALLOC, FREE, FREE, st.just(Step("empty"))), max_size=80)
WORKLOADS = st.lists(st.one_of(ALLOC, ALLOC, ALLOC, FREE, FREE, RARE), max_size=80)


class Run:
    """A workload on an allocator."""

    def __init__(self, allocator: CachingAllocator | RecordingAllocator) -> None:
        self.allocator = allocator
        self.live: list[Block] = []
        self.tickets: list[int] = []
        self.failures = 0

    def do(self, step: Step) -> None:
        allocator, live = self.allocator, self.live
        if step.what == "alloc":
            try:
                live.append(allocator.malloc(step.size, step.stream))
            except OutOfMemoryError:
                self.failures += 1
        elif step.what == "free" and live:
            allocator.free(live.pop(step.position % len(live)))
        elif step.what == "request" and live:
            self.tickets.append(allocator.request_free(live.pop(step.position % len(live))))
        elif step.what == "complete" and self.tickets:
            allocator.complete_free(self.tickets.pop(step.position % len(self.tickets)))
        elif step.what == "empty":
            allocator.empty_cache()

    def do_all(self, steps: list[Step]) -> "Run":
        for step in steps:
            self.do(step)
        return self
