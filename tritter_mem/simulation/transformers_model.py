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

import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tritter_mem.config.cards import GpuCard
from tritter_mem.errors import SimulationError, TritterMemError
from tritter_mem.models.transformers_run import TransformersRun
from tritter_mem.results.run import MemoryUse
from tritter_mem.simulation.cuda.dispatch import as_on_cuda
from tritter_mem.simulation.operators import tensors
from tritter_mem.simulation.peaks import WARMUP
from tritter_mem.simulation.recorder import Recorder
from tritter_mem.simulation.simulate import simulate_run
from tritter_mem.simulation.user_module import BACKWARD, FORWARD, OPTIMIZER
from tritter_model import labels

_PACKAGE = "transformers"


def simulate_transformers(
    run: TransformersRun, card: GpuCard, allocator_conf: str = ""
) -> MemoryUse:
    """Simulate a model of transformers on a card.

    Args:
        run: the model, and what is run of it.
        card: the card to stand for.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.

    Raises:
        SimulationError: transformers is missing or has no class for the model, its weights are
            quantised, or its code needs what `meta` does not have; the message says which line.
    """
    refuse_quantised(run)

    def workload(device: str, recorder: Recorder) -> None:
        with as_on_cuda(card.compute_capability), _explained(run):
            model = build_model(run)
            if run.trains:
                _train(model, run, recorder)
            else:
                _generate(model, run, recorder)

    return simulate_run(workload, card, allocator_conf)


def refuse_quantised(run: TransformersRun) -> None:
    """Raise SimulationError where linear layers are stored in fewer bits."""
    stored = run.model.quantization
    if not stored.method:
        return
    found = [scheme for _, scheme in stored.schemes]
    schemes = sorted({scheme.name for scheme in (*found, stored.experts) if scheme is not None})
    raise SimulationError(
        f"{run.model.model_type}: linear layers are stored as {', '.join(schemes) or stored.method}"
        f" ({stored.method}), whose kernels do not run on PyTorch's `meta` device"
    )


def build_model(run: TransformersRun, device: str = "meta") -> Any:
    """The language model as transformers builds it, in the type that it is run in.

    Args:
        run: has the configuration's keys.
        device: `meta`, or `cpu`.

    Raises:
        SimulationError: there is no transformers, or it has no class for this model.
    """
    try:
        from transformers import logging
        from transformers.models.auto import modeling_auto
    except ImportError as error:
        needed = "needs transformers: pip install 'tritter-mem[hf]'"
        raise SimulationError(f"{run.model.model_type}: a simulation {needed}") from error
    logging.set_verbosity_error()
    config = _language_config(run)
    found = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        raise SimulationError(
            f"{config.model_type}: this transformers has no class for the language model alone"
        )
    dtype = getattr(torch, run.training.master_dtype if run.trains else run.dtype.name)
    with torch.device(device):
        model = found._from_config(config, dtype=dtype)
    _keep_in_float32(model, dtype)
    return model.train(run.trains)


def _language_config(run: TransformersRun) -> Any:
    """transformers' configuration of the language model, without code of the repository."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    left_out = ("auto_map", "quantization_config")
    values = {key: value for key, value in run.config.items() if key not in left_out}
    given = str(values.get("model_type"))
    known = next((name for name in (given, run.model.language_type) if name in CONFIG_MAPPING), "")
    if not known:
        raise SimulationError(
            f"{given}: this transformers has no class for it; a simulation runs no code of a "
            "model's repository"
        )
    return CONFIG_MAPPING[known].from_dict(values | {"model_type": known}).get_text_config(True)


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


def _load(model: nn.Module, recorder: Recorder) -> None:
    """Account the weights, in the order in which `.to(device)` brings them.

    What no checkpoint holds, such as the frequencies of rotary embeddings, is activations.
    """
    persistent = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    tables = _tables(model)
    with recorder.phase("load"):
        for tensor in _in_order(model):
            kind = labels.EMBEDDINGS if id(tensor) in tables else labels.WEIGHTS
            recorder.adopt(tensor, kind if id(tensor) in persistent else labels.ACTIVATIONS)


def _tables(model: Any) -> set[int]:
    """The token embedding and the output projection, by identity."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return {
        id(tensor) for module in modules if module is not None for tensor in module.parameters()
    }


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

    def __init__(self, run: TransformersRun, recorder: Recorder) -> None:
        self._run = run
        self._recorder = recorder
        self._phase = ExitStack()
        self._tokens = 0

    def __enter__(self) -> _Generation:
        self._phase.enter_context(self._recorder.phase("prefill"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._phase.close()

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Note how many tokens there will be, and that scores are logits."""
        self._tokens = ids.shape[1] + 1
        self._recorder.adopt(scores, labels.LOGITS)
        return scores

    def finished(self) -> bool:
        """Whether all tokens are there; asked once a token. The first one ends the prefill."""
        finished = self._tokens >= self._run.work.context
        if not finished and self._tokens == self._run.prompt + 1:
            self._phase.close()
            self._phase.enter_context(self._recorder.phase("decode"))
        return finished

    def ran(self, module: nn.Module, args: Any, output: Any) -> None:
        """After each call of the model."""
        self._recorder.adopt(output.logits, labels.LOGITS)
        cache = output.get("past_key_values", output.get("cache_params"))
        for tensor in cached_tensors(cache):
            self._recorder.adopt(tensor, labels.KV_CACHE)


def cached_tensors(cache: Any) -> Iterator[Tensor]:
    """The keys, values and states that a cache of transformers holds."""
    for layer in (*cache.layers, getattr(cache, "linear_cache", None)):
        values = (value for value in vars(layer).values()) if layer is not None else ()
        for tensor in tensors(list(values)):
            if tensor.is_floating_point():
                yield tensor


def _generate(model: Any, run: TransformersRun, recorder: Recorder) -> None:
    """Greedy `generate()` of a prompt without padding."""
    from transformers import GenerationConfig

    _load(model, recorder)
    model.generation_config = GenerationConfig()  # no token ends a sequence
    work = run.work
    with _Generation(run, recorder) as generation, _answering(generation):
        handle = model.register_forward_hook(generation.ran)
        ids = torch.ones((work.batch, run.prompt), dtype=torch.long, device=model.device)
        model.generate(
            ids,
            max_new_tokens=work.new_tokens,
            do_sample=False,
            prefill_chunk_size=run.prefill_chunk,
            logits_processor=[generation],
        )
        handle.remove()


def _train(model: Any, run: TransformersRun, recorder: Recorder) -> None:
    """Two steps of `Trainer`; the first one, which makes the optimizer's state, does not count."""
    model.config.use_cache = False
    if run.training.checkpointing.policy != "none":
        model.activation_checkpointing_enable()
    _load(model, recorder)
    step = _TrainingStep(model, run, recorder)
    with _answering(None), recorder.phase(WARMUP):
        step.forward()
        step.backward()
        step.optimize()
    with _answering(None):
        with recorder.phase(FORWARD):
            step.forward()
        with recorder.phase(BACKWARD):
            step.backward()
        with recorder.phase(OPTIMIZER):
            step.optimize()


class _TrainingStep:
    """One batch forward, backward, and the update of the weights."""

    def __init__(self, model: Any, run: TransformersRun, recorder: Recorder) -> None:
        self._model, self._run, self._recorder = model, run, recorder
        self._optimizer = _optimizer(model, run)
        self._labelled = ExitStack()
        self._loss: Tensor | None = None
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
        assert self._loss is not None
        self._labelled.enter_context(labels.label(labels.LOGITS))
        self._loss.backward()
        self._loss = None
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                self._recorder.adopt(parameter.grad, labels.GRADIENTS)

    def optimize(self) -> None:
        """Clip, update, and let the gradients go."""
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        for tensor in tensors([list(state.values()) for state in self._optimizer.state.values()]):
            self._recorder.adopt(tensor, labels.OPTIMIZER_STATE)
        self._model.zero_grad()

    def _logits_begin(self, module: nn.Module, args: Any) -> None:
        """From here to the end of the forward pass, and back to here, tensors are logits."""
        self._labelled.enter_context(labels.label(labels.LOGITS))
        args[0].register_hook(self._logits_end)

    def _logits_end(self, gradient: Tensor) -> None:
        self._labelled.close()
        self._recorder.adopt(gradient, labels.ACTIVATIONS)


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
        raise SimulationError(
            f"{run.model.model_type}: {_place(error)}{type(error).__name__}: {said}"
        ) from error


def _place(error: BaseException) -> str:
    """The last line of transformers that ran."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if _PACKAGE in Path(frame.filename).parts]
    if not inside:
        return ""
    last = inside[-1]
    parts = Path(last.filename).parts
    file = "/".join(parts[len(parts) - parts[::-1].index(_PACKAGE) - 1 :])
    return f"{file}:{last.lineno}: `{last.line}` does not run on PyTorch's `meta` device: "
