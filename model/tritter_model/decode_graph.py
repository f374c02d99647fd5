"""The decode step as a CUDA graph: captured once, then replayed for every token.

A replay launches the step's kernels without Python, at whatever position the cache's device tensor
says. What the step allocates comes from the graph's private pool, which keeps its segments as long
as the graph lives; a replay allocates nothing.

On `meta` the step runs as often as on CUDA, under the same labels, so that a recorder sees the same
allocations. A CPU has no graphs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tritter_model.config import RunConfig
from tritter_model.kv_cache import KVCache
from tritter_model.labels import GRAPH_POOL, SIDE_STREAM, WORKSPACE, label, place
from tritter_model.ops.argmax import argmax
from tritter_model.ops.tuning import tuned
from tritter_model.transformer import Transformer


class DecodeGraph:
    """One greedy step of decoding, captured. Capturing leaves the cache empty.

    Args:
        run: the case; `multiprocessors` and the batch are read.
        model: what decodes, on CUDA or `meta`.
        cache: what the step reads and extends; the graph is of this cache alone.

    Raises:
        ValueError: the model is on a device without graphs.
    """

    def __init__(self, run: RunConfig, model: Transformer, cache: KVCache) -> None:
        device = cache.position.device
        if device.type not in ("cuda", "meta"):
            raise ValueError(
                f"got a CUDA graph to be made on {device.type}, expected cuda, meta;"
                " set workload.cuda_graph to false"
            )
        self._model, self._cache, self._multiprocessors = model, cache, run.multiprocessors
        self._token = torch.zeros((run.batch, 1), dtype=torch.int64, device=device)
        cache.seek(0)
        self._replay = self._captured(device)
        cache.seek(0)

    def decode(self, first: Tensor, steps: int) -> Tensor:
        """Go on from each sequence's token `first`, [B, 1]: it and `steps` more, [B, 1 + steps].

        Raises:
            ValueError: the cache has no room for so many tokens.
        """
        self._cache.check_room(steps)
        self._token.copy_(first)
        chosen = [first]
        for _ in range(steps):
            self._replay()
            self._cache.length += 1  # on the device the graph counts
            chosen.append(self._token.clone())
        return torch.cat(chosen, 1)

    def _step(self) -> None:
        """Read the token, choose the next one in its place."""
        with tuned(dependent_launch=True):
            hidden = self._model.extend(self._token, self._cache, self._multiprocessors)
            self._token.copy_(argmax(self._model.logits(hidden)))

    def _captured(self, device: torch.device) -> Callable[[], None]:
        """Run the step once beside the device's own stream, then capture it there."""
        if device.type == "meta":
            self._warm_up()
            self._kept = _random_state(device)
            with place(GRAPH_POOL):
                self._step()
            return lambda: None
        stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self._warm_up()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream), place(GRAPH_POOL):
            self._step()
        return graph.replay

    def _warm_up(self) -> None:
        """After this, libraries hold their workspaces for the stream, and capturing needs none."""
        with place(SIDE_STREAM):
            self._step()


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Seed and offset of the random generator: PyTorch keeps both with a graph that it captures.

    It takes them from the stream's own memory, before the graph's pool is in use. From 2.14 on it
    keeps neither.
    """
    if torch.__version__ >= "2.14":
        return ()
    with place(SIDE_STREAM), label(WORKSPACE):
        seed = torch.empty(1, dtype=torch.int64, device=device)
        return seed, torch.empty_like(seed)
