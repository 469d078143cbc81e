"""What a scheme is: by which names its tensors make one weight, and how such a weight is read.

Tensors are grouped by suffix, module by module, by what is stored; config.json's lists of exceptions are often wrong.
What a config says beside that (bits, the version of a layout) is asked for where the tensors do not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UnsupportedFeature
from converter.quant.sources.stored import Stored
from converter.tensors.tensor import LazyTensor


@dataclass(frozen=True)
class Module:
    """The stored tensors of one weight, by suffix, with what the scheme's config says for all."""

    name: str
    tensors: Mapping[str, LazyTensor]
    settings: Mapping[str, Any]
    checkpoint: Checkpoint

    def __contains__(self, suffix: str) -> bool:
        return suffix in self.tensors

    def __getitem__(self, suffix: str) -> LazyTensor:
        return self.tensors[suffix]

    def shape(self, suffix: str) -> tuple[int, ...]:
        return self.tensors[suffix].info.shape

    def type(self, suffix: str) -> str:
        return self.tensors[suffix].info.dtype.name

    def array(self, suffix: str) -> NDArray[Any]:
        """A tensor of it, read whole: for small ones."""
        return self.tensors[suffix].array()

    def rows(self, suffix: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor in its own type, (stop - start, row)."""
        tensor = self.tensors[suffix]
        assert tensor.info.dtype.numpy is not None  # what a scheme stores is no block of ggml
        return np.ascontiguousarray(tensor.rows(start, stop)).view(tensor.info.dtype.numpy)

    def columns(self, suffix: str, start: int, stop: int) -> NDArray[Any]:
        """Columns of a matrix in its own type, as rows: (stop - start, rows). Of its bytes only these are touched."""
        tensor = self.tensors[suffix]
        assert tensor.info.dtype.numpy is not None
        size = tensor.info.dtype.type_size
        data = tensor.rows(0, tensor.info.n_rows)[:, start * size : stop * size]
        return np.ascontiguousarray(np.ascontiguousarray(data).view(tensor.info.dtype.numpy).T)

    def octets(self, suffix: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes [start, stop) of a tensor, whatever its type and shape."""
        tensor = self.tensors[suffix]
        size = tensor.info.row_nbytes
        first = start // size
        data = tensor.rows(first, -(-stop // size))
        return np.ascontiguousarray(data).reshape(-1)[start - first * size : stop - first * size]

    @property
    def where(self) -> str:
        return f"{self.checkpoint.path}: {self.name}"

    def corrupt(self, what: str) -> CorruptFile:
        return CorruptFile(f"{self.where}: {what}")

    def unsupported(self, what: str) -> UnsupportedFeature:
        return UnsupportedFeature(f"{self.where}: {what}\nconvert the original model")

    def expect(self, suffix: str, *shapes: tuple[int, ...]) -> None:
        """Raises CorruptFile where a tensor has none of these shapes."""
        if (own := self.shape(suffix)) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise self.corrupt(f"{suffix.lstrip('._')} is {list(own)}, the others make it {wanted}")


@dataclass(frozen=True)
class Form:
    """One way in which a scheme stores a weight.

    Attributes:
        main: suffix of the tensor with the codes; a module is named by what stands before it.
        parts: suffixes of the tensors that must be beside it.
        extra: suffixes of those that may be.
        read: what makes a weight of them.
        plain: suffix of the weight's own name.
        dtypes: types that the main tensor may have, where its name alone does not tell.
    """

    main: str
    parts: tuple[str, ...]
    read: Callable[[Module], Stored]
    extra: tuple[str, ...] = ()
    plain: str = ".weight"
    dtypes: tuple[str, ...] = ()

    @property
    def beside(self) -> tuple[str, ...]:
        return self.parts + self.extra


@dataclass(frozen=True)
class Scheme:
    """A way to pack weights.

    Attributes:
        name: what people call it.
        methods: values of `quant_method` that mean it.
        forms: how it stores a weight; the first that fits counts.
        unused: suffixes of tensors that only whoever calculates with codes has a use for (scales of activations).
        parted: a tensor of the model as those of Hugging Face, where the scheme's library stacks some.
        labels: which free texts of a file's header, by name and text, describe packed tensors.
        refuse: what in the settings makes weights that cannot be read here, in words; None where all is well.
        told: whether a weight can be of this scheme alone, by what is stored of it, where no config says one.
    """

    name: str
    methods: tuple[str, ...]
    forms: tuple[Form, ...]
    unused: tuple[str, ...] = ()
    parted: Callable[[LazyTensor], tuple[LazyTensor, ...]] = lambda tensor: (tensor,)
    labels: Callable[[str, str], bool] = lambda name, text: False
    refuse: Callable[[Mapping[str, Any]], str | None] = lambda settings: None
    told: Callable[[Module], bool] = lambda module: False


def packs(scheme: Scheme, checkpoint: Checkpoint) -> bool:
    """Whether any weight is packed that way."""
    return any(_module(scheme, name, checkpoint, {}) for name in checkpoint.tensors)


def tells(scheme: Scheme, checkpoint: Checkpoint) -> bool:
    """Whether any weight can only be packed that way."""
    found = (_module(scheme, name, checkpoint, {}) for name in checkpoint.tensors)
    return any(each is not None and scheme.told(each[1]) for each in found)


def modules(scheme: Scheme, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Iterator[tuple[Form, Module]]:
    """The weights that are packed, in the order of the file.

    Raises:
        CorruptFile: a tensor of a weight without the others.
    """
    taken: set[str] = set()
    for name in checkpoint.tensors:
        if name not in taken and (found := _module(scheme, name, checkpoint, settings)) is not None:
            taken.update(tensor.name for tensor in found[1].tensors.values())
            yield found
    for name in checkpoint.tensors:
        if name in taken or name.endswith(scheme.unused):
            continue
        if what := _alone(scheme, name, checkpoint.tensors):
            raise CorruptFile(f"{checkpoint.path}: {name}: packed by {scheme.name}, but {what} is not there")


def _module(
    scheme: Scheme, name: str, checkpoint: Checkpoint, settings: Mapping[str, Any]
) -> tuple[Form, Module] | None:
    tensors = checkpoint.tensors
    for form in scheme.forms:
        stem = name.removesuffix(form.main)
        if not name.endswith(form.main) or not all(stem + part in tensors for part in form.parts):
            continue
        if form.dtypes and tensors[name].info.dtype.name not in form.dtypes:
            continue
        own = {suffix: tensors[stem + suffix] for suffix in (form.main, *form.beside) if stem + suffix in tensors}
        return form, Module(stem, own, settings, checkpoint)
    return None


def _alone(scheme: Scheme, name: str, tensors: Mapping[str, LazyTensor]) -> str | None:
    """What a tensor that only makes sense beside others lacks."""
    for form in scheme.forms:
        for suffix in (form.main, *form.beside):
            if suffix and suffix != form.plain and name.endswith(suffix):
                stem = name.removesuffix(suffix)
                lacking = [stem + part for part in (form.main, *form.parts) if stem + part not in tensors]
                return lacking[0] if lacking else None
    return None
