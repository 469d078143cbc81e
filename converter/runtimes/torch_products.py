"""What goes into the matrix products of a model that transformers runs, handed out while it runs.

Every call of torch that multiplies by a parameter, or by a part of one, is seen as it is made: layers, and experts,
whose matrices are slices of one parameter. What is looked at is the function (`_products`) and whose memory its matrix
is, so that nothing is known here of any model's modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.runtimes.base import Floats

#: A parameter, which of its stacked matrices is multiplied (None: it is one), and the rows, float32 (tokens, columns).
Seen = Callable[[str, "int | None", Floats], None]


@dataclass(frozen=True)
class _Product:
    """Where a function has its rows and its matrix."""

    rows: int
    matrix: int
    matrix_name: str


def _products(torch: Any) -> Mapping[Any, _Product]:
    functional, tensor = torch.nn.functional, torch.Tensor
    plain = (torch.matmul, torch.mm, tensor.matmul, tensor.mm, tensor.__matmul__)
    return {
        functional.linear: _Product(0, 1, "weight"),
        torch.addmm: _Product(1, 2, "mat2"),
        **dict.fromkeys(plain, _Product(0, 1, "other")),
    }


@contextmanager
def watched(torch: Any, parameters: Mapping[str, Any], seen: Seen) -> Iterator[None]:
    """Tell `seen` of every product with one of these parameters, by their names, that is computed meanwhile.

    A stack of matrices (three axes) is told by the number of the matrix. Products of the same rows get the same object
    where they come one after the other.
    """
    where = {parameter.untyped_storage().data_ptr(): (name, parameter) for name, parameter in parameters.items()}
    products, last = _products(torch), _Last()

    class Mode(torch.overrides.TorchFunctionMode):  # type: ignore[misc]  # torch is Any
        def __torch_function__(self, function: Any, kinds: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
            given = kwargs or {}
            if (found := products.get(function)) is not None:
                matrix: Any = args[found.matrix] if len(args) > found.matrix else given.get(found.matrix_name)
                known = where.get(matrix.untyped_storage().data_ptr()) if _is_matrix(torch, matrix) else None
                if known is not None and len(args) > found.rows:
                    seen(known[0], _number(known[1], matrix), last.rows(args[found.rows]))
            return function(*args, **given)

    with Mode():
        yield


def _is_matrix(torch: Any, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 2


def _number(parameter: Any, matrix: Any) -> int | None:
    """Which matrix of a stack it is."""
    if parameter.ndim < 3:
        return None
    return int((matrix.data_ptr() - parameter.data_ptr()) // (parameter.stride(0) * parameter.element_size()))


class _Last:
    """The rows of the product before, so that those of the same are one object."""

    def __init__(self) -> None:
        self._tensor: Any = None
        self._rows: Floats = np.empty((0, 0), np.float32)

    def rows(self, tensor: Any) -> Floats:
        if tensor is not self._tensor:
            self._tensor = tensor
            self._rows = tensor.detach().reshape(-1, tensor.shape[-1]).float().numpy()
        return self._rows
