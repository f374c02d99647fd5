"""How checkpoints store linear layers in fewer bits: one entry a scheme."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tritter_mem.errors import ConfigError
from tritter_mem.models.formats import ceil_div
from tritter_mem.models.huggingface_keys import Keys, section_of

Tensors = Callable[[int, int], tuple[int, ...]]
"""Bytes of each tensor of a stored weight of so many outputs and inputs: its codes come first."""
CACHE_TYPES = {"FP8": "fp8", "fp8": "fp8"}
NF4_BLOCK, NF4_NESTED_BLOCK, NF4_CODE_BYTES = 64, 256, 64
MX_BLOCK = 32
MOST_REPEATS = 6
AWQ_BITS, GPTQ_BITS, PACKED_BITS = (2, 4, 8), (2, 3, 4, 8), (2, 4, 8)
BITSANDBYTES = "bitsandbytes"
GGUF = "gguf"
"""The method of weights that llama.cpp runs."""
SCALE_BYTES = 2
"""Of a scale of compressed-tensors, in the type of the model, which is taken to be of half size."""
UNPACKED_BITS = 4
"""Of packed integers, of which it is known what unpacking takes."""
COMPUTE_TYPES = ("bfloat16", "float16", "float32")
UNPACKED = "unpacked in the first call"
"""A `Scheme.product`: rows are multiplied with what the weight has become."""
EXPERTS_MXFP4 = "experts in MXFP4"
"""A `Scheme.product`: routing and products of experts by Triton kernels."""
EXPERTS = r"re:.*\.experts\."
"""A pattern of the experts' weights."""


@dataclass(frozen=True)
class Rounding:
    """How the input of a product is rounded, in its own type: compressed-tensors' `fake_quantize`.

    Attributes:
        floats: whether to 8-bit floats; else to integers.
        dynamic: whether scales are found while it runs; else they are stored.
        group: elements that share a scale, where they are found; 0: those of a token.
    """

    floats: bool
    dynamic: bool
    group: int


@dataclass(frozen=True)
class Scheme:
    """One way to store the matrix of a linear layer.

    Attributes:
        name: as users call it.
        tensors: that a stored weight [outputs, inputs] has.
        product: how transformers multiplies with it, of `quantised_products.PRODUCTS`; empty: that
            is not planned.
        compute: type in which it multiplies; empty: that of the activations.
        group: inputs that share a scale, of which a row has a whole number where it is unpacked;
            0: all, or any number.
        rows: outputs that share a scale, of which there is a whole number where it is unpacked.
        packs: whether a word has several codes. `zeros`: whether a group has a packed zero too.
        rounding: how the layer rounds its input after its weight is unpacked; None: it does not.
    """

    name: str
    tensors: Tensors
    product: str = ""
    compute: str = ""
    group: int = 0
    rows: int = 1
    packs: bool = False
    zeros: bool = False
    rounding: Rounding | None = None

    def refusal(self, outputs: int, inputs: int) -> str:
        """Why a weight cannot be unpacked; empty: it can."""
        if self.product != UNPACKED:
            return ""
        if self.group and inputs % self.group:
            return f"found {inputs} inputs in groups of {self.group}"
        if outputs % self.rows:
            return f"found {outputs} outputs in groups of {self.rows}"
        if self.rounding is not None and self.rounding.group and inputs % self.rounding.group:
            return f"found {inputs} inputs, rounded in groups of {self.rounding.group}"
        return ""

    def weight_bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of a stored weight [outputs, inputs] with its scales."""
        return sum(self.tensors(outputs, inputs))


def fp8_tensor(scales: int = 1, scale_bytes: int = 4) -> Scheme:
    """8-bit floats with a scale a weight; a second one is that of static activations."""
    return Scheme("fp8", lambda outputs, inputs: (outputs * inputs, *(scale_bytes,) * scales))


def fp8_channel(scale_bytes: int, input_scales: int = 0) -> Scheme:
    """8-bit floats with a scale an output."""
    return Scheme(
        "fp8 per channel",
        lambda outputs, inputs: (
            outputs * inputs,
            outputs * scale_bytes,
            *(scale_bytes,) * input_scales,
        ),
    )


def fp8_blocks(rows: int, columns: int, scale_bytes: int = 4) -> Scheme:
    """8-bit floats with a scale a block, float32 unless it is said."""

    def stored(outputs: int, inputs: int) -> tuple[int, ...]:
        scales = ceil_div(outputs, rows) * ceil_div(inputs, columns)
        return outputs * inputs, scale_bytes * scales

    return Scheme(f"fp8 in blocks of {rows}x{columns}", stored)


def awq(bits: int, group: int) -> Scheme:
    """Codes in int32 words, and for each group of inputs a float16 scale and a code of its zero."""

    def stored(outputs: int, inputs: int) -> tuple[int, ...]:
        groups, per_word = _groups(inputs, group), 32 // bits
        words = ceil_div(outputs, per_word)
        return 4 * inputs * words, 4 * groups * words, 2 * groups * outputs

    return Scheme(f"AWQ {bits}-bit", stored)


def gptq(bits: int, group: int) -> Scheme:
    """Like AWQ, packed along inputs, and with an int32 group number for each input."""

    def stored(outputs: int, inputs: int) -> tuple[int, ...]:
        groups = _groups(inputs, group)
        codes = 4 * ceil_div(inputs * bits, 32) * outputs
        zeros = 4 * groups * ceil_div(outputs * bits, 32)
        return codes, zeros, 2 * groups * outputs, 4 * inputs

    return Scheme(f"GPTQ {bits}-bit", stored)


def bitsandbytes_int8() -> Scheme:
    """LLM.int8(): codes with a float32 scale an output."""
    return Scheme(
        "bitsandbytes int8",
        lambda outputs, inputs: (outputs * inputs, 4 * outputs),
        "bitsandbytes 8-bit",
    )


def bitsandbytes_4bit(kind: str, nested: bool, compute: str = "") -> Scheme:
    """Codes, a scale a block of 64 elements, and the table of the 16 codes' values.

    Args:
        kind: `nf4` or `fp4`.
        nested: scales are 8-bit codes with a float32 scale for 256 of them, and an offset.
        compute: type of products; empty: that of the activations.
    """

    def stored(outputs: int, inputs: int) -> tuple[int, ...]:
        codes, blocks = ceil_div(outputs * inputs, 2), ceil_div(outputs * inputs, NF4_BLOCK)
        if nested:
            return codes, blocks, 4 * ceil_div(blocks, NF4_NESTED_BLOCK), 4, NF4_CODE_BYTES
        return codes, 4 * blocks, NF4_CODE_BYTES

    product = "bitsandbytes 4-bit, nested" if nested else "bitsandbytes 4-bit"
    return Scheme(f"bitsandbytes {kind}", stored, product, compute)


def packed_integers(bits: int, group: int, scale_bytes: int, *, zeros: bool, order: bool) -> Scheme:
    """compressed-tensors' packed integers, with a scale for each group, and the weight's shape.

    Args:
        bits: of an integer.
        scale_bytes: of a scale.
        group: inputs that share a scale; 0: all of an output.
        zeros: whether groups have a packed zero.
        order: whether each input has a group number.
    """

    def stored(outputs: int, inputs: int) -> tuple[int, ...]:
        groups = _groups(inputs, group)
        found = [4 * outputs * ceil_div(inputs, 32 // bits), scale_bytes * outputs * groups]
        if zeros:
            found.append(4 * ceil_div(outputs, 32 // bits) * groups)
        if order:
            found.append(4 * inputs)
        return *found, 16

    return Scheme(f"int{bits} packed", stored, group=max(group, 0), packs=True, zeros=zeros)


def int8_channel(scale_bytes: int, input_scales: int = 0) -> Scheme:
    """8-bit integers with a scale an output."""
    return Scheme(
        "int8 per channel",
        lambda outputs, inputs: (
            outputs * inputs,
            outputs * scale_bytes,
            *(scale_bytes,) * input_scales,
        ),
    )


def mxfp4(scale_bytes: int = 1) -> Scheme:
    """4-bit floats in blocks of 32 inputs with a scale each, which is an 8-bit exponent or more."""
    return Scheme(
        "MXFP4",
        lambda outputs, inputs: (
            outputs * ceil_div(inputs, 2),
            scale_bytes * outputs * ceil_div(inputs, MX_BLOCK),
        ),
    )


def nvfp4(group: int = 16) -> Scheme:
    """4-bit floats with an 8-bit scale a group, and two float32 scales a weight."""
    return Scheme(
        "NVFP4",
        lambda outputs, inputs: (
            outputs * ceil_div(inputs, 2),
            outputs * ceil_div(inputs, group),
            4,
            4,
        ),
    )


def _groups(inputs: int, group: int) -> int:
    return ceil_div(inputs, group) if group > 0 else 1


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Which linear layers of a checkpoint are stored how.

    Attributes:
        method: as the file names it; empty: nothing is quantised.
        schemes: patterns of names to a scheme; the first that matches counts. An empty pattern
            matches all linear layers.
        skipped: names and patterns of modules that stay as they are.
        globs: whether patterns are those of file names, as modelopt has them; else they are
            regular expressions from the start of a name, or the end of one.
        experts: scheme of experts, where they have another.
        cache: type of the key-value cache that the file asks for; empty: none.
        unsupported: what of the file is not understood.
        unplanned: why what runs with such weights is not planned; empty: it is, or a scheme says.
        file_bytes: of all weights, where the file has a type for each; None: schemes say it.
        dequantised: whether the file asks for numbers in place of its codes.
    """

    method: str = ""
    schemes: tuple[tuple[str, Scheme], ...] = ()
    skipped: tuple[str, ...] = ()
    globs: bool = False
    experts: Scheme | None = None
    cache: str = ""
    unsupported: tuple[str, ...] = ()
    unplanned: str = ""
    file_bytes: int | None = None
    dequantised: bool = False

    def scheme_of(self, name: str) -> Scheme | None:
        """How a linear layer is stored; None: in the checkpoint's floating-point type.

        Args:
            name: of the module in the checkpoint; an expert's number is `*`.
        """
        name = name.replace(".experts.*.", ".experts.0.")
        if not self.method or self._skips(name):
            return None
        if self.experts is not None and ".experts." in name:
            return self.experts
        for pattern, scheme in self.schemes:
            if re.match(pattern, name):
                return scheme
        return None

    def held(self, capability: tuple[int, int]) -> Quantization:
        """How transformers 5.23 holds the weights on a card: dequantised where it has no kernels.

        Args:
            capability: compute capability of the card.
        """
        if self.method == DEQUANTISED_LATER:
            known = self.all_schemes and not self.unsupported
            if not known or any(scheme.product != UNPACKED for scheme in self.all_schemes):
                return Quantization(unplanned=self.unplanned)
            return replace(self, skipped=(*self.skipped, EXPERTS), unplanned="")
        return Quantization() if self.is_dequantised(capability) else self

    def is_dequantised(self, capability: tuple[int, int]) -> bool:
        """Whether weights become numbers of the model's type, while they are loaded or later."""
        later = self.method == DEQUANTISED_LATER
        return later or self.dequantised or capability < DEQUANTISED_BELOW.get(self.method, (0, 0))

    @property
    def all_schemes(self) -> tuple[Scheme, ...]:
        """Every scheme that something may be stored in."""
        found = tuple(scheme for _, scheme in self.schemes)
        return found if self.experts is None else (*found, self.experts)

    def _skips(self, name: str) -> bool:
        parts = name.split(".")
        starts = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        ends = {".".join(parts[count:]) for count in range(len(parts))}
        plain, patterns = self._skipped
        if not plain.isdisjoint(starts | ends):
            return True
        return any(pattern.match(name) for pattern in patterns)

    @cached_property
    def _skipped(self) -> tuple[frozenset[str], tuple[re.Pattern[str], ...]]:
        """Names as they are, and patterns, without the prefix of a multimodal model."""
        plain, patterns = set(), []
        for item in self.skipped:
            name = item.replace("language_model.model.", "model.").replace("language_model.", "")
            name = name.removeprefix("re:") if item.startswith("re:") else name
            if re.fullmatch(r"[\w.\-]+", name):
                plain.add(name)
            else:
                patterns.append(self._compiled(item, name))
        return frozenset(plain), tuple(patterns)

    def _compiled(self, item: str, name: str) -> re.Pattern[str]:
        _refuse_endless(name)
        if self.globs:
            return re.compile(_from_glob(name))
        try:
            return re.compile(
                name if item.startswith("re:") else rf"(?:{name})(?:(?<=\.)|(?=\.|$))"
            )
        except re.error as error:
            raise ConfigError(f"quantization_config: {item!r} is no pattern: {error}") from error


def _refuse_endless(pattern: str) -> None:
    """Refuse what could match for longer than anybody waits: repeats of repeats, or many of them.

    Raises:
        ConfigError: the pattern is such a one.
    """
    if re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > MOST_REPEATS:
        raise ConfigError(
            f"quantization_config: {pattern!r:.80}: a pattern repeats no group, and has at most "
            f"{MOST_REPEATS} repeats"
        )


def _from_glob(pattern: str) -> str:
    """A regular expression; a pattern matches what is inside of a module too."""
    escaped = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return rf"{escaped}(?:$|\.)"


def read_quantization(
    section: Mapping[str, Any] | None, modelopt: Mapping[str, Any] | None = None
) -> Quantization:
    """Read how a checkpoint is quantised.

    Args:
        section: `quantization_config` of a `config.json`.
        modelopt: what `hf_quant_config.json` beside it has.

    Raises:
        ConfigError: a value is wrong.
    """
    if modelopt is not None:
        return _noted(_modelopt(_section(modelopt, "quantization")))
    if section is None:
        return Quantization()
    method = section.get("quant_method")
    if method is None and (section.get("load_in_4bit") or section.get("load_in_8bit")):
        method = BITSANDBYTES
    reader = READERS.get(str(method))
    if reader is None:
        return Quantization(unsupported=(f"quantization by {method!s:.60} is not counted",))
    try:
        found = reader(section_of(section, "quantization_config"))
        found.scheme_of("")  # its patterns are compiled here, so that a wrong one is found here
        return _noted(found)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ConfigError(f"quantization_config: a {method} value is wrong: {error}") from error


def of_gguf(file_bytes: int) -> Quantization:
    """Weights as a GGUF file has them, each in a type of ggml.

    Args:
        file_bytes: of all its tensors.
    """
    return Quantization(method=GGUF, file_bytes=file_bytes, unplanned=UNPLANNED[GGUF])


def _noted(found: Quantization) -> Quantization:
    return replace(found, unplanned=UNPLANNED.get(found.method, ""))


def _section(values: Mapping[str, Any], name: str) -> Keys:
    keys = section_of(values, "hf_quant_config.json")
    return keys.section(name) if name in values else keys


def _skipped(section: Keys, *, always_head: bool = False) -> tuple[str, ...]:
    """`modules_to_not_convert`; without it transformers leaves the output projection."""
    listed = section.names("modules_to_not_convert")
    if listed is None:
        listed = section.names("llm_int8_skip_modules")
    if listed is None:
        return ("lm_head",)
    return (*listed, "lm_head") if always_head else tuple(listed)


def _group_inputs(section: Keys, absent: int) -> int:
    """Inputs that share a scale: below 1, all of an output do."""
    size = section.integer("group_size")
    return absent if size is None else size


def _blocks(section: Keys, name: str, scale_bytes: int = 4) -> Scheme:
    rows, columns = (section.numbers(name, 2) or [0, 0])[:2]
    if not rows or not columns:
        raise ConfigError(f"{section.place}{name}: two numbers above 0 are wanted")
    return fp8_blocks(rows, columns, scale_bytes)


def _fp8(section: Keys) -> Quantization:
    absent = section.get("weight_block_size") is None
    static = 1 if section.get("activation_scheme") == "static" else 0
    scale_bytes = 1 if section.get("scale_fmt") == "ue8m0" else 4
    scheme = (
        fp8_tensor(1 + static) if absent else _blocks(section, "weight_block_size", scale_bytes)
    )
    scheme = replace(scheme, product="float8")
    four_bit = replace(mxfp4(scale_bytes), product="float8")  # by the same kernels
    has_four_bits = section.get("expert_dtype") == "fp4"
    return Quantization(
        method="fp8",
        schemes=(("", scheme),),
        skipped=_skipped(section),
        experts=four_bit if has_four_bits else None,
        dequantised=section.get("dequantize") is True,
    )


def _fbgemm_fp8(section: Keys) -> Quantization:
    return Quantization(
        method="fbgemm_fp8", schemes=(("", fp8_channel(4)),), skipped=_skipped(section)
    )


def _not_counted(method: str, bits: int) -> Quantization:
    return Quantization(unsupported=(f"quantization by {method} in {bits} bits is not counted",))


def _awq(section: Keys) -> Quantization:
    bits, group = section.optional("bits") or 4, _group_inputs(section, 128)
    if bits not in AWQ_BITS:
        return _not_counted("AWQ", bits)
    return Quantization(
        method="awq",
        schemes=(("", awq(bits, group)),),
        skipped=_skipped(section, always_head=True),
    )


def _gptq(section: Keys) -> Quantization:
    bits, group = section.optional("bits") or 4, _group_inputs(section, 128)
    if bits not in GPTQ_BITS:
        return _not_counted("GPTQ", bits)
    skipped = section.names("modules_to_not_convert") or ()
    dynamic = section.mapping("dynamic")
    left_out = tuple(f"re:{key.removeprefix('-:')}" for key in dynamic if key.startswith("-:"))
    head = () if section.get("lm_head") else ("lm_head",)
    return Quantization(
        method="gptq", schemes=(("", gptq(bits, group)),), skipped=(*skipped, *left_out, *head)
    )


def _bitsandbytes(section: Keys) -> Quantization:
    """Modules of the class `Linear`: experts, which are one tensor, stay as they are.

    Products are in float32 unless `bnb_4bit_compute_dtype` says otherwise.
    """
    scheme = bitsandbytes_int8()
    if section.get("load_in_4bit"):
        kind = section.text("bnb_4bit_quant_type") or "fp4"
        compute = (section.text("bnb_4bit_compute_dtype") or "float32").removeprefix("torch.")
        if compute not in COMPUTE_TYPES:
            known = ", ".join(COMPUTE_TYPES)
            raise ConfigError(
                f"{section.place}bnb_4bit_compute_dtype: {compute} is not one of {known}"
            )
        nested = bool(section.get("bnb_4bit_use_double_quant"))
        scheme = bitsandbytes_4bit(kind, nested, compute)
    skipped = (*_skipped(section), EXPERTS)
    return Quantization(method=BITSANDBYTES, schemes=(("", scheme),), skipped=skipped)


def _mxfp4(section: Keys) -> Quantization:
    """Experts alone."""
    scheme = replace(mxfp4(), product=EXPERTS_MXFP4)
    return Quantization(
        method="mxfp4",
        schemes=((r".*\.experts\.", scheme),),
        skipped=_skipped(section),
        dequantised=section.get("dequantize") is True,
    )


def _compressed_tensors(section: Keys) -> Quantization:
    groups, schemes, unsupported = section.section("config_groups"), [], []
    for name in groups.values:
        group = groups.section(name)
        weights = group.section("weights")
        if not weights.values:
            continue
        scheme = _compressed_scheme(weights, group)
        if scheme is None:
            unsupported.append(f"quantization group {name:.60} is not counted")
            continue
        targets = group.names("targets")
        targets = ("Linear",) if targets is None else targets
        schemes += [(_target(target), scheme) for target in targets]
    eight_bit_cache = section.section("kv_cache_scheme").optional("num_bits") == 8
    if section.section("kv_cache_scheme").values or section.section("transform_config").values:
        # Attention quantises, or rows are turned, in a way that has no formulas.
        schemes = [(target, replace(scheme, product="")) for target, scheme in schemes]
    return Quantization(
        method="compressed-tensors",
        schemes=tuple(schemes),
        skipped=section.names("ignore") or (),
        cache="fp8" if eight_bit_cache else "",
        unsupported=tuple(unsupported),
    )


def _target(target: str) -> str:
    """A pattern of a target: a class of modules is all of them."""
    if target.startswith("re:"):
        _refuse_endless(target)
        return target.removeprefix("re:")
    return "" if target == "Linear" else rf"{re.escape(target)}(?:$|\.)"


def _compressed_scheme(weights: Keys, group: Keys) -> Scheme | None:
    bits, kind = weights.number("num_bits"), weights.get("type") or "int"
    size, activations = max(_group_inputs(weights, 0), 0), group.section("input_activations")
    if kind == "float" and bits == 4:
        return nvfp4(size or 16) if size != MX_BLOCK else mxfp4()
    if bits == 8 and (kind == "float" or (kind == "int" and activations.values)):
        return _with_products(_eight_bits(weights, kind, activations), weights, group)
    if kind == "int" and bits in PACKED_BITS:
        zeros, order = weights.get("symmetric") is False, weights.get("actorder") == "group"
        scheme = packed_integers(bits, size, SCALE_BYTES, zeros=zeros, order=order)
        alone = not (activations.values or group.section("output_activations").values)
        plain = bits == UNPACKED_BITS and not order
        return replace(scheme, product=UNPACKED) if plain and alone else scheme
    return None


def _eight_bits(weights: Keys, kind: object, activations: Keys) -> Scheme:
    strategy = weights.get("strategy")
    static = 1 if activations.values and not activations.get("dynamic") else 0
    if kind == "int":
        return int8_channel(SCALE_BYTES, static)
    if strategy == "block":
        return _blocks(weights, "block_structure", SCALE_BYTES)
    if strategy == "channel":
        return fp8_channel(SCALE_BYTES, static)
    return fp8_tensor(1 + static, SCALE_BYTES)


def _with_products(scheme: Scheme, weights: Keys, group: Keys) -> Scheme:
    """How compressed-tensors multiplies: with numbers, and a rounded input where that is quantised.

    Where it does so in another way, the scheme says nothing of products.
    """
    rounded, others = group.section("input_activations"), group.section("output_activations")
    strategies = ("tensor", "channel", "block") if weights.get("type") == "float" else ("channel",)
    if weights.get("strategy") not in strategies or weights.get("symmetric") is False:
        return scheme
    rows, columns = 1, 0
    if weights.get("strategy") == "block":
        rows, columns = (weights.numbers("block_structure", 2) or [0, 0])[:2]
    unpacked = replace(scheme, product=UNPACKED, rows=rows, group=columns)
    if not rounded.values:
        return scheme if others.values else unpacked
    known = rounded.get("num_bits") == 8 and rounded.get("symmetric") is not False
    dynamic, strategy = rounded.get("dynamic"), rounded.get("strategy")
    size = max(_group_inputs(rounded, 0), 0) if strategy == "group" else 0
    found = dynamic is True and (strategy == "token" or (strategy == "group" and size > 0))
    stored = not dynamic and strategy == "tensor"
    if others.values or not known or not (found or stored):
        return scheme
    floats = rounded.get("type") == "float"
    return replace(unpacked, rounding=Rounding(floats, found, size))


def _modelopt(section: Keys) -> Quantization:
    algorithm, size = section.get("quant_algo"), section.optional("group_size") or 16
    schemes = {
        "FP8": fp8_tensor(2),
        "NVFP4": nvfp4(size),
        "FP8_PB_WO": fp8_blocks(128, 128),
        "FP8_PER_CHANNEL_PER_TOKEN": fp8_channel(4),
    }
    scheme = schemes.get(str(algorithm))
    cache = CACHE_TYPES.get(str(section.get("kv_cache_quant_algo")), "")
    if scheme is None:
        unsupported = (f"quantization by modelopt's {algorithm!s:.60} is not counted",)
        return Quantization(cache=cache, unsupported=unsupported)
    excluded = section.names("exclude_modules") or section.names("ignore") or ()
    return Quantization(
        method="modelopt",
        schemes=(("", scheme),),
        skipped=excluded,
        globs=True,
        cache=cache,
    )


DEQUANTISED_BELOW: Mapping[str, tuple[int, int]] = {"fp8": (8, 9), "mxfp4": (7, 5)}
"""Capability from which transformers keeps weights as they are stored; below it they become numbers
of the model's type while they are loaded. Source: `validate_environment` in
`quantizer_finegrained_fp8.py` and `quantizer_mxfp4.py`."""
DEQUANTISED_LATER = "compressed-tensors"
"""A method whose weights become numbers of the model's type in the first call, on every card.
Experts, which are one tensor, become so while they are loaded. Sources: compressed-tensors 0.20,
`ModelCompressor.add_decompress_hook`; `CompressedTensorsDequantize` of transformers."""
UNPLANNED: Mapping[str, str] = {
    "compressed-tensors": "compressed-tensors dequantises all weights in the first call, after "
    "which they are counted; what that takes meanwhile, and how it rounds activations, is not "
    "planned for all of these schemes",
    "modelopt": "transformers does not read checkpoints of modelopt, which are for vLLM and "
    "TensorRT-LLM; activations are not planned",
    "awq": "what the kernels of gptqmodel for AWQ take is not planned: which of them runs depends "
    "on what can be compiled on the machine, and some expand a whole weight",
    "gptq": "what the kernels of gptqmodel for GPTQ take is not planned: which of them runs "
    "depends on what can be compiled on the machine, and some expand a whole weight",
    GGUF: "a GGUF file is for llama.cpp: its weights and a float16 cache are counted, compute "
    "buffers are not planned; weights.quantization=none plans transformers, which dequantises it",
}
"""By `quant_method`: why what runs with such weights is not planned."""
READERS: Mapping[str, Callable[[Keys], Quantization]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "awq": _awq,
    "gptq": _gptq,
    BITSANDBYTES: _bitsandbytes,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
}
"""A `quant_method` to how its section is read. A new one is a row here, and an entry above."""
