"""Models of Hugging Face transformers: built from a configuration on `meta`, and run there.

transformers' own classes are built, and its own code runs: greedy `generate()`, or a training step
of `Trainer`. No code of a model's repository runs and nothing is downloaded. What of it asks for
values, which tensors on `meta` do not have, is answered by the rules of `_ANSWERS`.

| what | how |
|---|---|
| weights | in the order of `.to(device)`, one storage each |
| towers for images and sound | not built in, or left out: the language model alone is simulated |
| attention | sdpa where transformers has it for the model, as the card takes it; else eager |
| experts | `grouped_mm`, and `batched_mm` for tokens that are generated, as on CUDA; shapes do not depend on the routing |
| optional kernels (flash-linear-attention, causal-conv1d, mamba-ssm, kernels) | none: PyTorch's code, as in an installation without them |
| sequences | no padding, one in each row, and no token that ends one |
"""  # noqa: E501  (a table has its width)

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tritter_mem.config.cards import GpuCard
from tritter_mem.errors import SimulationError, TritterMemError
from tritter_mem.models.huggingface import LANGUAGE_SECTIONS
from tritter_mem.models.huggingface_families import SAME_AS
from tritter_mem.models.transformers_run import TransformersRun
from tritter_mem.results.run import MemoryUse
from tritter_mem.simulation.cuda.dispatch import as_on_cuda
from tritter_mem.simulation.mxfp4_kernels import kernels_loaded, load_last
from tritter_mem.simulation.operators import tensors
from tritter_mem.simulation.peaks import WARMUP
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.quantised_layers import quantise
from tritter_mem.simulation.recorder import Recorder
from tritter_mem.simulation.simulate import both, simulate_run
from tritter_mem.simulation.user_module import BACKWARD, FORWARD, OPTIMIZER, Watch
from tritter_model import labels

_PACKAGE = "transformers"
_GROUPED = (8, 0)  # capability from which `grouped_mm` is called: `_can_use_grouped_mm`


def simulate_transformers(
    run: TransformersRun,
    card: GpuCard,
    allocator_conf: str = "",
    *,
    progress: Progress | None = None,
    save_trace: Path | None = None,
    budget_bytes: int | None = None,
) -> MemoryUse:
    """Simulate a model of transformers on a card.

    Args:
        run: the model, and what is run of it.
        card: the card to stand for.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        progress: learns how far the run is.
        save_trace: where to write the run's events; nowhere without it.
        budget_bytes: what may be used of the card; None: there is no cap.

    Raises:
        SimulationError: the card does not run CUDA, transformers is missing or has no class for
            the model, its weights are stored in a way that does not run here, or its code needs
            what `meta` does not have; the message says which line.
    """
    card.require_cuda()
    followed = progress or Progress()
    with _explained(run), alone(card):
        model = build_model(run, card)
        layers = _layers(model)

        def workload(device: str, recorder: Recorder) -> None:
            passes = followed.counting(layers, _passes(run) * len(layers))
            with as_on_cuda(card.compute_capability, card.vendor), passes:
                run_model(model, run, _Followed(recorder, followed))

        use = simulate_run(workload, card, allocator_conf, save_trace, budget_bytes=budget_bytes)
        return replace(use, caveat=run.caveat_on(card.compute_capability))


def run_model(model: Any, run: TransformersRun, watch: Watch) -> None:
    """Run a built model where it is: prompt and new tokens, or two training steps.

    Args:
        model: of `build_model`.
        run: what is run.
        watch: follows the run.
    """
    (_train if run.trains else _generate)(model, run, watch)


def _layers(model: Any) -> list[nn.Module]:
    """The decoder's layers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    modules = model.get_decoder().modules()
    return [module for module in modules if isinstance(module, GradientCheckpointingLayer)]


def _passes(run: TransformersRun) -> int:
    """How often the run goes through all layers, what is recomputed left out."""
    if run.trains:
        return 2  # with the warm-up
    chunks = -(-run.prompt // (run.prefill_chunk or run.prompt))
    return chunks + run.work.new_tokens - 1


class _Followed:
    """A recorder, whose phases `progress` follows."""

    def __init__(self, recorder: Recorder, progress: Progress) -> None:
        self.adopt = recorder.adopt
        self.phase = both(recorder.phase, progress.entering)


def build_model(run: TransformersRun, card: GpuCard, device: str = "meta") -> Any:
    """The model as transformers builds it, in the types that it is run in.

    Args:
        run: has the configuration's keys.
        card: decides how quantised weights are kept.
        device: `meta`, or `cpu`.

    Raises:
        SimulationError: there is no transformers, or it has no class for this model or for how
            its weights are stored.
    """
    try:
        from transformers import logging
    except ImportError as error:
        needed = "needs transformers: pip install 'tritter-mem[hf]'"
        raise SimulationError(f"{run.model.model_type}: a simulation {needed}") from error
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    found, config = _class_and_config(run)
    dtype = getattr(torch, run.training.master_dtype if run.trains else run.dtype.name)
    with torch.device(device):
        model = found._from_config(config, dtype=dtype)
    _check_size(model, run)
    quantise(model, run, card)
    _route_evenly(model)
    _keep_in_float32(model, dtype)
    return model.train(run.trains)


def _class_and_config(run: TransformersRun) -> tuple[Any, Any]:
    """The class that generates text, without towers where there is one, and its configuration.

    Raises:
        SimulationError: there is none.
    """
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    left_out = ("auto_map", "quantization_config")
    values = {key: value for key, value in run.config.items() if key not in left_out}
    given, language = str(values.get("model_type")), run.model.language_type
    for name in (given, language, *(name for name, same in SAME_AS.items() if same == language)):
        if name not in CONFIG_MAPPING:
            continue
        whole = _config(CONFIG_MAPPING[name], values | {"model_type": name})
        alone = whole.get_text_config(decoder=True)
        for config, classes in (
            (alone, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING),
            (whole, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
        ):
            if (found := classes.get(type(config), None)) is not None:
                return found, config
    raise SimulationError(
        f"{given}: this transformers has no class for it that generates; a simulation runs no code "
        "of a model's repository"
    )


def _config(found: Any, values: dict[str, Any]) -> Any:
    """A configuration of a class, from its keys or from those of its language model alone."""
    sections = [name for name in LANGUAGE_SECTIONS if name in found.sub_configs]
    if sections and sections[0] not in values:
        language = values | {"model_type": found.sub_configs[sections[0]].model_type}
        whole = ("model_type", "tie_word_embeddings")
        values = {key: values[key] for key in whole if key in values} | {sections[0]: language}
    return found.from_dict(values)


def _check_size(model: Any, run: TransformersRun) -> None:
    """Compare the parameters with those that the configuration describes.

    Keys that a class does not know are ignored by transformers, which then builds another model.

    Raises:
        SimulationError: they are not as many.
    """
    parameters = (tensor for tensor in _of_language(model) if isinstance(tensor, nn.Parameter))
    built = sum(tensor.numel() for tensor in parameters)
    if not run.model.unsupported and built != run.model.language_parameters:
        raise SimulationError(
            f"{run.model.model_type}: transformers builds {built:,} parameters from these keys, "
            f"which describe {run.model.language_parameters:,}"
        )


class _Float8Kernel:
    """Shapes of what the kernels of `kernels-community/finegrained-fp8` return."""

    @staticmethod
    def matmul(x: Tensor, weight: Tensor, *rest: Any, **more: Any) -> Tensor:
        """Rows [..., K] by a weight [N, K]: [..., N] in the type of the rows."""
        return x.new_empty((*x.shape[:-1], weight.shape[-2]))

    @staticmethod
    def grouped_matmul(x: Tensor, weight: Tensor, *rest: Any, **more: Any) -> Tensor:
        """Rows [S, K] by the weights [E, N, K] of experts: [S, N] in the type of the rows."""
        return x.new_empty((x.shape[0], weight.shape[-2]))

    batched_matmul = grouped_matmul


def _keep_in_float32(model: Any, dtype: torch.dtype) -> None:
    """What `from_pretrained` keeps in float32 whatever the type of the rest."""
    from transformers.core_model_loading import build_glob_alternation

    kept = model._get_dtype_plan(dtype)
    if not kept:
        return
    pattern = build_glob_alternation(list(kept))[0]
    persistent = model.state_dict(keep_vars=True)
    for name, tensor in persistent.items():
        if pattern.search(name) and tensor.is_floating_point():
            tensor.data = tensor.data.float()


def _load(model: Any, watch: Watch) -> None:
    """Account the weights, in the order in which `.to(device)` brings them.

    What no checkpoint holds, such as the frequencies of rotary embeddings, is activations.
    """
    persistent = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(tensor) for table in tables if table for tensor in _in_order(table)}
    with watch.phase("load"):
        for tensor in _of_language(model):
            kind = labels.EMBEDDINGS if id(tensor) in embeddings else labels.WEIGHTS
            watch.adopt(tensor, kind if id(tensor) in persistent else labels.ACTIVATIONS)
        for tensor in load_last(model):
            watch.adopt(tensor, labels.WEIGHTS)


def _of_language(model: Any) -> Iterator[Tensor]:
    """Parameters and buffers without those of towers, each once, in the order of `.to(device)`."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    # Beside the base model of a model without towers there is its output projection alone.
    parts = (model,) if decoder is model.base_model else (decoder, head)
    there = {id(tensor) for part in parts if part for tensor in _in_order(part)}
    for tensor in _in_order(model):
        if id(tensor) in there:
            there.remove(id(tensor))
            yield tensor


def _in_order(module: nn.Module) -> Iterator[Tensor]:
    """Children first, then parameters, then buffers: `torch.nn.Module._apply`."""
    for child in module.children():
        yield from _in_order(child)
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


class _Generation:
    """Follows a call of `generate()`: its phases, its cache and its logits.

    It is a logits processor that changes nothing: `generate()` calls it with all ids so far and the
    scores of the last token.
    """

    def __init__(self, run: TransformersRun, watch: Watch) -> None:
        self._run = run
        self._watch = watch
        self._phase = ExitStack()
        self._tokens = 0

    def __enter__(self) -> _Generation:
        self._phase.enter_context(self._watch.phase("prefill"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._phase.close()

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Note how many tokens there will be, and that scores are logits."""
        self._tokens = ids.shape[1] + 1
        self._watch.adopt(scores, labels.LOGITS)
        return scores

    def finished(self) -> bool:
        """Whether all tokens are there; asked once a token. The first one ends the prefill."""
        finished = self._tokens >= self._run.work.context
        if not finished and self._tokens == self._run.prompt + 1:
            self._phase.close()
            self._phase.enter_context(self._watch.phase("decode"))
        return finished

    def ran(self, module: nn.Module, args: Any, output: Any) -> None:
        """After each call of the model."""
        self._watch.adopt(output.logits, labels.LOGITS)
        cache = output.get("past_key_values", output.get("cache_params"))
        for tensor in cached_tensors(cache):
            self._watch.adopt(tensor, labels.KV_CACHE)


def cached_tensors(cache: Any) -> Iterator[Tensor]:
    """The keys, values and states that a cache of transformers holds."""
    held = [list(vars(layer).values()) for layer in cache.layers]
    for tensor in tensors([held, getattr(cache, "linear_cache", [])]):  # the second is of MiniMax
        if tensor.is_floating_point() or tensor.dtype in (torch.uint8, torch.int32):  # codes
            yield tensor


def _cache_settings(run: TransformersRun) -> dict[str, Any]:
    """Of `generate()`: which cache it makes."""
    cache = run.cache
    match cache.implementation:
        case "static":
            settings = {"cache_implementation": "static", "disable_compile": True}
            length = cache.max_cache_len
            return settings if length is None else settings | {"max_cache_len": length}
        case "quantized":
            grouped = ("nbits", "axis_key", "axis_value", "q_group_size", "residual_length")
            names = () if cache.backend == "fp8" else grouped
            config = {"backend": cache.backend} | {name: getattr(cache, name) for name in names}
            return {"cache_implementation": "quantized", "cache_config": config}
    return {}


@contextmanager
def _caches() -> Iterator[None]:
    """Let static layers say how many tokens they hold, which they count in a tensor.

    Backends of quantised ones are stood for.
    """
    from transformers.cache_utils import StaticLayer

    from tritter_mem.simulation.cache_backends import shapes_of_backends

    update, held = StaticLayer.update, "_tokens_held"

    def counted(layer: Any, keys: Tensor, values: Tensor, *rest: Any, **more: Any) -> Any:
        setattr(layer, held, getattr(layer, held, 0) + keys.shape[-2])
        return update(layer, keys, values, *rest, **more)

    with (
        patch.object(StaticLayer, "update", counted),
        patch.object(StaticLayer, "get_seq_length", lambda layer: getattr(layer, held, 0)),
        shapes_of_backends(),
    ):
        yield


def _generate(model: Any, run: TransformersRun, watch: Watch) -> None:
    """Greedy `generate()` of a prompt without padding."""
    from transformers import GenerationConfig

    _load(model, watch)
    if run.cache.implementation != "dynamic" and not model._supports_default_dynamic_cache():
        raise SimulationError(
            f"{run.model.model_type}: transformers makes a cache for it whatever "
            "kv_cache.implementation says; set it to dynamic"
        )
    no_end: Any = GenerationConfig  # no token ends a sequence
    model.generation_config = no_end()
    work = run.work
    with _Generation(run, watch) as generation, _answering(generation), _caches():
        handle = model.register_forward_hook(generation.ran)
        ids = torch.ones((work.batch, run.prompt), dtype=torch.long, device=model.device)
        model.generate(
            ids,
            max_new_tokens=work.new_tokens,
            do_sample=False,
            prefill_chunk_size=run.prefill_chunk,
            logits_processor=[generation],
            **_cache_settings(run),
        )
        handle.remove()


def _train(model: Any, run: TransformersRun, watch: Watch) -> None:
    """Two steps of `Trainer`; the first one, which makes the optimizer's state, does not count."""
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.use_cache = False
    if run.training.checkpointing.policy != "none":
        model.activation_checkpointing_enable()
    _load(model, watch)
    step = _TrainingStep(model, run, watch)
    with _answering(None), watch.phase(WARMUP):
        step.forward()
        step.backward()
        step.optimize()
    with _answering(None):
        with watch.phase(FORWARD):
            step.forward()
        with watch.phase(BACKWARD):
            step.backward()
        with watch.phase(OPTIMIZER):
            step.optimize()


class _TrainingStep:
    """One batch forward, backward, and the update of the weights."""

    def __init__(self, model: Any, run: TransformersRun, watch: Watch) -> None:
        self._model, self._run, self._watch = model, run, watch
        self._optimizer = _optimizer(model, run)
        self._labelled = ExitStack()
        self._loss: Any = None
        model.get_output_embeddings().register_forward_pre_hook(self._logits_begin)
        model.register_forward_hook(lambda *call: self._labelled.close())
        shape = run.work.batch, run.work.context
        self._ids = torch.ones(shape, dtype=torch.long, device=model.device)

    def forward(self) -> None:
        """Loss of the batch; in float32 under autocast, as `Trainer` does with `bf16=True`."""
        run = self._run
        mixed = run.training.master_dtype == "float32" and run.dtype.name != "float32"
        dtype = getattr(torch, run.dtype.name)
        with torch.autocast("cuda", dtype=dtype, enabled=mixed):
            output = self._model(input_ids=self._ids, labels=self._ids)
        self._loss = output.loss

    def backward(self) -> None:
        """Gradients of all parameters."""
        loss, self._loss = self._loss, None
        self._labelled.enter_context(labels.label(labels.LOGITS))
        loss.backward()
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                self._watch.adopt(parameter.grad, labels.GRADIENTS)

    def optimize(self) -> None:
        """Clip, update, and let the gradients go."""
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        for tensor in tensors([list(state.values()) for state in self._optimizer.state.values()]):
            self._watch.adopt(tensor, labels.OPTIMIZER_STATE)
        self._model.zero_grad()

    def _logits_begin(self, module: nn.Module, args: Any) -> None:
        """From here to the end of the forward pass, and back to here, tensors are logits."""
        self._labelled.enter_context(labels.label(labels.LOGITS))
        args[0].register_hook(self._logits_end)

    def _logits_end(self, gradient: Tensor) -> None:
        self._labelled.close()
        self._watch.adopt(gradient, labels.ACTIVATIONS)


def _optimizer(model: Any, run: TransformersRun) -> torch.optim.Optimizer:
    """As `Trainer` makes it."""
    match run.training.optimizer:
        case "adamw":
            return torch.optim.AdamW(model.parameters(), fused=True)
        case "sgd":
            return torch.optim.SGD(model.parameters())
    return EightBitAdamW(model.parameters())


class EightBitAdamW(torch.optim.Optimizer):
    """The state of bitsandbytes' `AdamW8bit`, whose kernels update everything in place.

    Source: `bitsandbytes/optim/optimizer.py`, `Optimizer2State.init_state`: two moments of 8 bits
    an element with a float32 for each block of 256; of parameters under 4,096 elements two float32
    moments. Two tables of 256 float32 are shared by all.
    """

    BLOCK, LEAST = 256, 4096

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self._tables: list[Tensor] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the state where there is none yet."""
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.grad is not None and not self.state[parameter]:
                self.state[parameter] = self._state(parameter)

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        small = parameter.numel() < self.LEAST
        dtype = torch.float32 if small else torch.uint8
        state: dict[str, Tensor] = {}
        for name in ("1", "2"):
            if not small and len(self._tables) < 2:
                self._tables.append(torch.zeros(256, device=parameter.device))
            state[f"state{name}"] = torch.zeros_like(parameter, dtype=dtype)
            if not small:
                blocks = -(-parameter.numel() // self.BLOCK)
                state[f"absmax{name}"] = torch.zeros(blocks, device=parameter.device)
        return state


@contextmanager
def alone(card: GpuCard) -> Iterator[None]:
    """No network, no kernels of other packages but the shapes of those for float8 and MXFP4."""
    from huggingface_hub import constants
    from transformers.integrations import finegrained_fp8, moe

    grouped = card.compute_capability >= _GROUPED

    with (
        patch.object(constants, "HF_HUB_OFFLINE", True),
        patch.object(finegrained_fp8, "load_finegrained_fp8_kernel", _Float8Kernel),
        patch.object(finegrained_fp8, "is_deepgemm_loadable", lambda: False),
        patch.object(moe, "_can_use_grouped_mm", lambda *tensors: grouped),
        kernels_loaded(card),
    ):
        yield


_WHERE = torch.where


class _Expert(int):
    """The number of an expert, which is used as a row of a tensor on the device is."""

    def __getitem__(self, place: int) -> int:
        return int(self)

    def item(self) -> int:
        """The number."""
        return int(self)


class Routing:
    """Stands for the values by which a loop over experts finds each one's rows: equal shares.

    Where experts run in a loop, transformers asks which experts have rows (`nonzero`), and for each
    in turn which rows (`where`). Every expert gets as many, the first ones a row more where it does
    not divide; one without rows is not visited.

    Args:
        pairs: tokens times the experts that each takes.
        experts: how many there are.
    """

    def __init__(self, pairs: int, experts: int) -> None:
        self._pairs, self._experts = pairs, experts
        self._visited = 0

    def nonzero(self) -> list[_Expert]:
        """The experts that have rows."""
        return [_Expert(number) for number in range(min(self._experts, self._pairs))]

    def where(self, mask: Tensor, *either: Any) -> Any:
        """Rows of the next expert, of a mask [K, T]: two vectors of indices."""
        if either:
            return _WHERE(mask, *either)
        rows = self._pairs // self._experts + (self._visited < self._pairs % self._experts)
        self._visited += 1
        return mask.new_empty((rows, mask.dim()), dtype=torch.long).unbind(1)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer what is asked in a loop over experts."""
        with (
            patch.object(Tensor, "nonzero", lambda found, **how: self.nonzero()),
            patch.object(torch, "where", self.where),
        ):
            yield


def _route_evenly(model: nn.Module) -> None:
    """Let experts that run in a loop find rows by shares; those of `grouped_mm` ask nothing."""
    for module in model.modules():
        loops = type(module).__name__.endswith("Experts") and not hasattr(module, "is_transposed")
        weights = getattr(module, "gate_up_proj", None)
        if loops and isinstance(weights, Tensor) and "top_k_index" in _parameters(module.forward):
            module.forward = _evenly(module.forward, len(weights))


def _parameters(function: Callable[..., Any]) -> Iterable[str]:
    return inspect.signature(function).parameters


def _evenly(forward: Callable[..., Tensor], experts: int) -> Callable[..., Tensor]:
    def run(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        if not index.is_meta:
            return forward(x, index, weights)
        with Routing(index.numel(), experts).answering():
            return forward(x, index, weights)

    return run


_ANSWERS = {
    ("transformers.generation.utils", "generate"): True,  # the mask of the prompt: no padding
    ("transformers.generation.utils", "_get_logits_processor"): False,  # no id is negative
    ("transformers.masking_utils", "find_packed_sequence_indices"): True,  # one sequence a row
}
"""What code that asks whether a tensor is true hears: by module and function."""
_STOPS = (
    ("transformers.generation.utils", "__call__"),  # of StopCheck
    ("transformers.generation.utils", "_has_unfinished_sequences"),
)
"""Where `generate()` asks whether all sequences are finished."""


@contextmanager
def _answering(generation: _Generation | None) -> Iterator[None]:
    """Answer by rule what code asks of a tensor's values."""
    asked = Tensor.__bool__

    def answer(tensor: Tensor) -> bool:
        if tensor.is_meta:
            frame = sys._getframe(1)
            place = frame.f_globals.get("__name__", ""), frame.f_code.co_name
            if generation is not None and place in _STOPS:
                return generation.finished()
            if place in _ANSWERS:
                return _ANSWERS[place]
        return asked(tensor)

    with patch.object(Tensor, "__bool__", answer):
        yield


@contextmanager
def _explained(run: TransformersRun) -> Iterator[None]:
    """Say in one line which line of transformers cannot run.

    Raises:
        SimulationError: with that line.
    """
    try:
        yield
    except TritterMemError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        why = " does not run on PyTorch's `meta` device" if "meta" in said.lower() else " failed"
        raise SimulationError(
            f"{run.model.model_type}: {_place(error)}{why}: {type(error).__name__}: {said}"
        ) from error


def _place(error: BaseException) -> str:
    """The last line of transformers that ran."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if _PACKAGE in Path(frame.filename).parts]
    if not inside:
        return "the run"
    last = inside[-1]
    parts = Path(last.filename).parts
    file = "/".join(parts[len(parts) - parts[::-1].index(_PACKAGE) - 1 :])
    return f"{file}:{last.lineno}: `{last.line}`"
