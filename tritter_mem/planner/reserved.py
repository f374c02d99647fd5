"""What PyTorch's allocator reserves for a plan: the plan's own tensors, played through it.

The tensors of inference come and go in the order in which the bundled model allocates them, so the
allocator is asked what a run would ask of it. What would repeat itself is left out: of the prompt's
chunks all but the first, one between and the last; of the new tokens likewise; of equal layers all
but a few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tritter_mem import torch_release
from tritter_mem.allocator.blocks import Block as Memory
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.errors import ConfigError
from tritter_mem.models.architecture import EXPANDED_ROWS, Layer, Rows, SteppedBlock
from tritter_mem.planner.case import Case
from tritter_mem.planner.inference import POSITION_BYTES, TOKEN_ID_BYTES, logits_bytes
from tritter_mem.results.segments import PrivateStream, Stream
from tritter_model.config import SHORTENED

LAYERS_PLAYED = 3
"""Of equal layers: from the second on, the allocator serves one from what the one before left."""
MAIN: Stream = 0
SIDE: Stream = 1
GRAPH: Stream = PrivateStream(1, (1, 0))
Held = list[Memory]


class Reserved(NamedTuple):
    """What the allocator does for a run.

    Attributes:
        peak_bytes: the most that it reserves.
        releases: how often it gives cached memory back to stay within the budget.
    """

    peak_bytes: int
    releases: int = 0


def find_reserved(
    play: Callable[[CachingAllocator], None], allocator_conf: str, limit: tuple[int, int] | None
) -> Reserved:
    """What the allocator reserves for a run, within a budget where that suffices.

    Until it first gives cached memory back, an allocator with a limit does what one without does,
    unless its settings add another limit. So a run that is served within it is played once.

    Args:
        play: makes the run's requests; called once or twice.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        limit: the budget, and the part of it that the CUDA context takes; None: there is none.

    Returns:
        What is reserved without a limit where that is within it, or where it runs out of memory
        within it; else what is reserved within it.

    Raises:
        ConfigError: the allocator's settings are unknown, or the run needs more than 2^62 bytes.
    """
    settings = parse_alloc_conf(allocator_conf)

    def within(limit: tuple[int, int]) -> Reserved | None:
        allocator = CachingAllocator(settings, *limit)
        try:
            play(allocator)
        except OutOfMemoryError:
            return None
        return Reserved(allocator.counters.reserved.peak, allocator.counters.num_alloc_retries)

    def without() -> Reserved:
        allocator = CachingAllocator(settings)
        try:
            play(allocator)
        except OutOfMemoryError as error:  # of a device without a limit
            raise ConfigError("too much memory to count: more than 2^62 bytes") from error
        return Reserved(allocator.counters.reserved.peak)

    other_limit = (
        settings.garbage_collection_threshold > 0 or settings.per_process_memory_fraction < 1
    )
    if limit is not None and not other_limit:
        return within(limit) or without()
    found = without()
    if limit is None or found.peak_bytes <= limit[0] - limit[1]:
        return found
    return within(limit) or found


def reserved_for(case: Case, budget_bytes: int | None = None) -> Reserved | None:
    """What the allocator reserves; None for what is not played: training, vision towers.

    Args:
        case: the plan's subject.
        budget_bytes: what may be used of the card; None: as much as is asked for.

    Raises:
        ConfigError: the allocator's settings are unknown.
    """
    if case.trains or case.architecture.vision is not None:
        return None
    limit = None if budget_bytes is None else (budget_bytes, case.card.context_bytes)
    return find_reserved(
        lambda allocator: InferenceRun(case, allocator).play(), case.allocator_conf, limit
    )


class InferenceRun:
    """One run of a case, as its requests of an allocator."""

    def __init__(self, case: Case, allocator: CachingAllocator) -> None:
        self.case, self.allocator = case, allocator
        self._stream: Stream = MAIN
        self._handles: set[bool] = set()
        self._layers = list(_played(case.architecture.layers))

    def play(self) -> None:
        """All of it."""
        self.load()
        self.warm_up()
        if self.case.captures:
            self.capture()
        self.generate()

    def take(self, sizes: Iterable[int]) -> Held:
        """Allocate; nothing for what has no bytes."""
        return [self.allocator.malloc(size, self._stream) for size in sizes if size]

    def drop(self, held: Held) -> None:
        """Free, the last first."""
        for memory in reversed(held):
            self.allocator.free(memory)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """What is allocated meanwhile is another stream's, or a private pool's."""
        before, self._stream = self._stream, stream
        yield
        self._stream = before

    def load(self) -> None:
        """Weights, the cache, its position and the prompt: they stay."""
        sizes = [size for size in self._loaded() if size]
        self.allocator.serve(sizes, range(len(sizes)), {})

    def _loaded(self) -> Iterator[int]:
        case, model = self.case, self.case.architecture
        table = case.embeddings.weight(model.vocabulary, model.hidden)
        yield from table
        for layer in model.layers:
            for block in layer.blocks:
                yield from block.stored(model.hidden, case.weights, case.compute)
        yield model.hidden * case.compute.element_bytes
        if not model.tied:
            yield from table
        for layer in model.layers:
            for block in layer.blocks:
                yield from block.cache(case.cache)
        yield POSITION_BYTES
        yield case.work.batch * (case.work.context - case.work.new_tokens) * TOKEN_ID_BYTES

    def warm_up(self) -> None:
        """The prompt, shortened, and a token; nothing stays but libraries' workspaces."""
        prompt, chunk = self.case.work.context - self.case.work.new_tokens, self._chunk
        if prompt % chunk == 1 < prompt:  # a last chunk of one token is decoded
            self.drop(self._prefill(prompt - 1))
        logits = self._prefill(prompt)
        if self.case.work.new_tokens > 1:
            token = self._token()
            x = self._layers_of(self.case.rows(1), cached=True)
            self.drop(token)
            self.drop(self._logits(x, copies=False))
        self.drop(logits)

    def capture(self) -> None:
        """A step beside the device's stream, then one into the graph's own pool, which stays."""
        self.take([self.case.work.batch * TOKEN_ID_BYTES])
        with self.on(SIDE):
            self._greedy_step()
            random_state = torch_release.random_state_bytes()
            self.take([random_state // 2] * 2 if random_state else [])
        self.allocator.empty_cache()
        with self.on(GRAPH):
            self._greedy_step()

    def _greedy_step(self) -> None:
        x = self._layers_of(self.case.rows(1), cached=True)
        logits = self._logits(x, copies=False, keeps=True)
        token = self._token()
        for held in (logits, token, x):
            self.drop(held)

    def generate(self) -> None:
        """The prompt, then tokens; the hidden state and logits of a step stay for the next one."""
        case, steps = self.case, min(self.case.work.new_tokens - 1, SHORTENED)
        logits = self._prefill(case.work.context - case.work.new_tokens)
        self._token()
        if case.captures:
            for _ in range(steps):
                self._token()
        else:
            hidden: Held = []
            for _ in range(steps):
                x = self._layers_of(case.rows(1), cached=True)
                self.drop(hidden)
                hidden = x
                before, logits = logits, self._logits(x, copies=False, keeps=True)
                self.drop(before)
                self._token()
        self.take([case.work.batch * case.work.new_tokens * TOKEN_ID_BYTES])

    @property
    def _chunk(self) -> int:
        return self.case.work.prefill_chunk

    def _token(self) -> Held:
        """A token of each sequence."""
        return self.take([self.case.work.batch * TOKEN_ID_BYTES])

    def _prefill(self, prompt: int) -> Held:
        """A prompt in chunks: the logits of its last token."""
        whole, rest = divmod(prompt, self._chunk)
        sizes = [self._chunk] * whole + [rest] * (rest > 0)
        number = min(len(sizes), SHORTENED)
        work = self.case.work
        # Some columns of several rows do not lie side by side.
        copied = work.batch > 1 and sizes != [work.context - work.new_tokens]
        for position, tokens in enumerate(sizes[: number - 1]):
            self.drop(self._layers_of(self.case.rows(tokens), position > 0, copied))
        x = self._layers_of(self.case.rows(sizes[-1]), len(sizes) > 1, copied)
        return self._logits(x, copies=True)

    def _layers_of(self, rows: Rows, cached: bool, copied_ids: bool = False) -> Held:
        """All layers: the residual stream, which stays."""
        copied_ids &= rows.tokens > rows.batch  # one column of several rows is a view
        ids = self.take([copied_ids * rows.tokens * TOKEN_ID_BYTES])
        x = self.take(rows.activation(rows.hidden))
        self.drop(ids)
        blocks = self.case.architecture.layers[0].blocks
        shared = self.take(max((block.inference_shared(rows) for block in blocks), default=()))
        for layer in self._layers:
            self._layer(layer, rows, cached)
        self.drop(shared)
        return x

    def _layer(self, layer: Layer[SteppedBlock], rows: Rows, cached: bool) -> None:
        processors = self.case.card.multiprocessors
        for block in layer.blocks:
            scratch = block.cache_scratch(rows, self.case.cache, cached, processors)
            tensors = {**block.tensors(rows), "attention_scratch": scratch}
            held: dict[str, Held] = {}
            steps = [text.split() for text in block.inference_steps(rows).values()]
            for names, later in zip(steps, [*steps[1:], []], strict=True):
                for name in names:
                    if name != "x" and name not in held:
                        held[name] = self.take(tensors.get(name, ()))
                        if name == "rows_in" and not self.case.weights.is_ternary:
                            self.drop(self.take([4 * rows.tokens]))  # 1 / rms of the norm
                multiplies = any(name.startswith("expanded_") for name in names)
                if multiplies and not self.case.weights.is_ternary:
                    self._product()
                gone = [name for name in reversed(held) if name not in later]
                for name in sorted(gone, key=lambda name: name == "y"):  # `y` is what is returned
                    self.drop(held.pop(name))

    def _logits(self, x: Held, copies: bool, keeps: bool = False) -> Held:
        """The norm of the last tokens, and their logits; x goes, unless it is kept.

        Args:
            x: the residual stream.
            copies: the last token's is copied first, and the rest let go.
            keeps: whether x stays.
        """
        case, rows = self.case, self.case.rows(1)
        last = rows.activation(rows.hidden)
        if copies:
            copy = self.take(last)
            self.drop(x)
            x = copy
        normed = self.take(last)
        self.drop(self.take([4 * rows.batch]))
        is_float = case.embeddings.is_float
        cast = is_float and case.embeddings is not case.compute
        inputs = self.take([cast * rows.batch * rows.hidden * case.embeddings.element_bytes])
        logits = self.take([logits_bytes(case, rows.batch)])
        expanded = 0 if is_float else min(EXPANDED_ROWS, case.architecture.vocabulary)
        scratch = self.take([expanded * rows.hidden * case.compute.element_bytes])
        self._product()
        self.drop(scratch)
        self.drop(inputs)
        self.drop(normed)
        if not keeps:
            self.drop(x)
        return logits

    def _product(self) -> None:
        """A product of cuBLAS: the first on a stream takes a workspace, which its handle keeps."""
        size = self.case.card.cublas_workspace_bytes
        if not torch_release.keeps_workspaces():
            self.drop(self.take([size]))
        elif (beside := self._stream != MAIN) not in self._handles:  # a graph is captured there too
            self._handles.add(beside)
            self.take([size])


def _played(layers: Iterable[Layer[SteppedBlock]]) -> Iterator[Layer[SteppedBlock]]:
    """The first few of each kind of layer, in order."""
    seen: dict[Layer[SteppedBlock], int] = {}
    for layer in layers:
        seen[layer] = seen.get(layer, 0) + 1
        if seen[layer] <= LAYERS_PLAYED:
            yield layer
