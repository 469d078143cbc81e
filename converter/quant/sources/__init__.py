"""Checkpoints that arrive quantized: each weight as one tensor under its plain name, whatever scheme packed it.

`unpacked` stands between a reader and everything that looks at a model's numbers: `formats` open what is stored, the
mapping sees plain names. A scheme is one file of this folder, which says what tensors make a weight and how it is read.
Modules are told apart by what is stored: one without companions is a plain tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UnsupportedFeature
from converter.events import Event, Note, StoredLoss
from converter.quant.sources import (
    awq,
    bitnet,
    bitsandbytes,
    compressed_tensors,
    fp8,
    gptq,
    hqq,
    mlx,
    modelopt,
    mxfp4,
    quanto,
    torchao,
)
from converter.quant.sources.declared import SIDECARS, Declared, declared, undeclared
from converter.quant.sources.scheme import Form, Module, Scheme, modules, packs, tells
from converter.quant.sources.stored import Kept, Stored, Values
from converter.tensors import nvfp4
from converter.tensors.bound import Bound, Codes
from converter.tensors.dtypes import BF16, DTYPES, F32, DType
from converter.tensors.encode import Watch, encoded
from converter.tensors.mxfp4 import joined
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

SCHEMES: tuple[Scheme, ...] = tuple(
    each.SCHEME
    for each in (
        awq, bitnet, bitsandbytes, compressed_tensors, fp8, gptq, hqq, mlx, modelopt, mxfp4, quanto, torchao,
    )
)  # fmt: skip
_BY_METHOD: Mapping[str, Scheme] = {method: scheme for scheme in SCHEMES for method in scheme.methods}
#: What stands beside codes.
_COMPANIONS = tuple({part for scheme in SCHEMES for form in scheme.forms for part in form.parts})
#: What holds no codes: numbers, blocks that are known, and ids.
_PLAIN = frozenset(("F64", "F32", "F16", "BF16", "MXFP4", "I64"))
#: How config.json names types.
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def scheme_of(checkpoint: Checkpoint, *, typed: bool = True) -> Declared | None:
    """What is said of how a Hugging Face model's weights are packed; None for plain weights.

    A config that names a scheme beside plain weights (DeepSeek's own cast to BF16 leaves one) is not believed. Where
    none names one, weights may tell it (llm-awq's .pt files, with the config of the original). `typed`: what a type of
    ggml holds as two tensors of the source (gpt-oss' MXFP4) counts as plain.
    """
    if checkpoint.dialect != "hf":
        return None
    seen = checkpoint.replace(tensors=joined(checkpoint.tensors)) if typed else checkpoint
    infos = (tensor.info for tensor in seen.tensors.values())
    coded = any(len(info.shape) > 1 and info.dtype.name not in _PLAIN for info in infos)
    if not coded and not any(name.endswith(_COMPANIONS) for name in seen.tensors):
        return None  # and nobody asks a config that cannot be read
    found = declared(checkpoint) or _told(seen)
    scheme = _BY_METHOD.get(found.method) if found else None  # codes may lie in a type of numbers: their bytes, that is
    return found if coded or (scheme is not None and packs(scheme, seen)) else None


def _told(checkpoint: Checkpoint) -> Declared | None:
    return next((Declared(scheme.methods[0], {}) for scheme in SCHEMES if tells(scheme, checkpoint)), None)


def unpacked(
    checkpoint: Checkpoint,
    *,
    typed: bool = True,
    keep: str = "never",
    rounded: bool = False,
    watch: Watch | None = None,
) -> Checkpoint:
    """The checkpoint with plain weights, and a config that names no scheme; itself where they are plain already.

    In a GGUF, what stands beside NVFP4 blocks becomes one with them.

    Args:
        checkpoint: as its reader opened it.
        typed: as `scheme_of`.
        keep: of `request.KEEP_CODES`, or "same": what a source has in a type of ggml; what is not kept is decoded.
        rounded: decoded weights in the type that the model calculates in, or a wider one that holds them exactly;
            otherwise in F32.
        watch: counts scales that were rounded, while tensors are read.

    Raises:
        UnsupportedFeature: a scheme or a layout that is not read here.
        CorruptFile: tensors that contradict each other or the config, or that are not all there.
    """
    if checkpoint.dialect == "gguf":
        return checkpoint.replace(tensors=nvfp4.joined(checkpoint.tensors))
    found = scheme_of(checkpoint, typed=typed)
    if found is None:
        return checkpoint
    scheme = _BY_METHOD.get(found.method)
    problem = scheme.refuse(found.settings) if scheme else "not decoded here"
    if scheme is None or problem:
        why = "which is not decoded here" if scheme is None else problem
        raise UnsupportedFeature(
            f"{checkpoint.path}: the weights are packed by {found.name}, {why}\n"
            "convert the original model; --tensors-only alone copies the packed tensors as they are"
        )
    own = _own_type(checkpoint) if rounded else F32
    weights: dict[str, LazyTensor] = {}
    companions: set[str] = set()
    told: Counter[str] = Counter()
    events: list[Event] = []
    codes: dict[str, Codes] = {}
    for form, module in modules(scheme, checkpoint, found.settings):
        stored = form.read(module)
        tensor, how, loss, bound = _tensor(form, module, stored, keep, own, watch or Watch())
        main = module[form.main].name
        codes[main] = Codes(bound, stored.holds())
        weights[main] = tensor
        used = [part.name for part in module.tensors.values() if tensor.beside or not part.name.endswith(scheme.unused)]
        companions.update(name for name in used if name != main)
        told[how] += 1
        if loss:
            events.append(StoredLoss(tensor.name, how, loss))
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        if name in weights:
            tensors[weights[name].name] = weights[name]
        elif name in companions:
            continue
        elif name.endswith(scheme.unused):
            told["left out: for those who calculate with codes"] += 1
        else:
            _refuse_codes(checkpoint, found, tensor)
            tensors[name] = tensor
    said = "; ".join(f"{count} {how}" for how, count in told.items())
    return checkpoint.replace(
        tensors={each.name: each for tensor in tensors.values() for each in scheme.parted(tensor)},
        config=undeclared(checkpoint.config),
        metadata={name: text for name, text in checkpoint.metadata.items() if not scheme.labels(name, text)},
        assets={name: path for name, path in checkpoint.assets.items() if name not in ("config.json", *SIDECARS)},
        events=(*checkpoint.events, Note(f"weights packed by {found.name}: {said}"), *events),
        codes=codes,
    )


def _tensor(
    form: Form, module: Module, stored: Stored, keep: str, own: DType, watch: Watch
) -> tuple[LazyTensor, str, str, Bound]:
    """A weight as a tensor, what became of it in words, what that loses, and how far it is from its codes."""
    main, name = module[form.main], module.name + form.plain
    parts = tuple(part.name for part in module.tensors.values())
    kept = stored.kept(near=keep == "near") if keep != "never" else None
    if kept is not None and (keep != "same" or kept.same):
        info = TensorInfo(name, stored.shape, kept.dtype)
        tensor = main.derived(info, _counted(kept, name, watch), parts=parts, work_nbytes=stored.work)
        tensor = replace(tensor, beside=kept.beside)
        return tensor, f"kept as {kept.dtype}", kept.loss, kept.bound

    def read(start: int, stop: int) -> Rows:
        return np.ascontiguousarray(stored.values(start, stop)).view(np.uint8)

    plain = main.derived(TensorInfo(name, stored.shape, F32), read, parts=parts, work_nbytes=stored.work)
    if isinstance(stored, Values):
        plain = replace(plain, slab_nbytes=stored.slab)
    holds = stored.holds()
    wanted = F32 if own is F32 else holds or own
    made = plain if wanted is F32 else encoded(plain, wanted, watch)
    return made, f"decoded to {wanted}", "", Codes(holds=holds).by_way_of((F32, wanted))


def _counted(kept: Kept, name: str, watch: Watch) -> Callable[[int, int], Rows]:
    def read(start: int, stop: int) -> Rows:
        data, n_rounded = kept.read(start, stop)
        watch.scales(name, kept.dtype.name, 0 if kept.loss else n_rounded)
        return data

    return read


def _own_type(checkpoint: Checkpoint) -> DType:
    """The type that a model calculates in: what its config says, else that of most of its plain weights."""
    parts = (checkpoint.config, *(each for each in checkpoint.config.values() if isinstance(each, dict)))
    for part in parts:
        for key in ("dtype", "torch_dtype"):
            if (said := part.get(key)) in _TYPES:
                return DTYPES[_TYPES[said]]
    plain = Counter(t.info.dtype for t in checkpoint.tensors.values() if t.info.dtype.name in _TYPES.values())
    return max(plain, key=plain.__getitem__, default=BF16)


def _refuse_codes(checkpoint: Checkpoint, found: Declared, tensor: LazyTensor) -> None:
    if len(tensor.info.shape) > 1 and tensor.info.dtype.name not in _PLAIN:
        raise CorruptFile(
            f"{checkpoint.path}: {tensor.name} is {tensor.info.dtype} {list(tensor.info.shape)}, and nothing beside it "
            f"says how {found.name} packed it"
        )
