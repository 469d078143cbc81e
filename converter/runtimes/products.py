"""What goes into the matrix products of a model that llama.cpp runs, handed out while it runs.

llama.cpp asks a callback (`cb_eval`) of every node of its graph. A node is a `ggml_tensor`, whose struct is public but
may differ between versions: `Products` compares what it reads by it with what ggml's own functions say of the same
node, before anything else is read, and refuses where they differ. Which products count is llama-imatrix's rule
(tools/imatrix/imatrix.cpp, `collect_imatrix`): MUL_MAT of a weight in a block with at least `MIN_ROWS` rows of F32, and
every MUL_MAT_ID, the product by experts.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from converter.errors import UnsupportedFeature
from converter.extras import package
from converter.interrupts import holding
from converter.runtimes.base import Floats

MIN_ROWS = 16
F32, I32 = 0, 26  # ggml_type
_OPS = 64  # how far into ggml's enumeration the products are looked for
_PRODUCT, _BY_EXPERTS = b"MUL_MAT", b"MUL_MAT_ID"
_FAMILIES = (b"UNARY", b"GLU")  # nodes of these are called by what they compute
_LIBRARIES = (".so", ".dylib", ".dll")


class Observer(Protocol):
    """Who is told what goes into products."""

    def take(self, name: str, rows: Floats, expert: int | None) -> None:
        """Inputs of a weight's product.

        Args:
            name: of the weight, as in the GGUF file.
            rows: float32 (tokens, columns of the weight). Products of the same input get the same object, one after
                the other; it must not be changed.
            expert: which of the weight's stacked matrices they are multiplied by, None for a weight that is one.
        """


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, as far as it is read."""

    _fields_ = (
        ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
    )  # fmt: skip


#: Functions of ggml: result and arguments.
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_get_name": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "ggml_get_data": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "ggml_op_desc": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "ggml_op_name": (ctypes.c_char_p, (ctypes.c_int,)),
    "ggml_nelements": (ctypes.c_int64, (ctypes.c_void_p,)),
    "ggml_nbytes": (ctypes.c_size_t, (ctypes.c_void_p,)),
    "ggml_backend_tensor_get": (None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)),
}


class Products:
    """The callback of one context of llama.cpp, and what went wrong in it.

    Once a graph has had everything that the first one had, llama.cpp computes no more of it: neither the output nor,
    where one block is wanted, those behind it.

    Args:
        path: the model, for messages.
        observer: is told.
        wanted: whether a weight's inputs are wanted, by its name; no other is computed apart or copied.

    Attributes:
        callback: for `cb_eval` of the context; it must live as long as this.
        by_experts: weights that were multiplied by chosen experts so far.

    Raises:
        UnsupportedFeature: this llama.cpp lacks what is called here.
    """

    def __init__(self, path: Path, observer: Observer, wanted: Callable[[str], bool]) -> None:
        library = package("llama_cpp", f"{path}: running it")
        self._path, self._observer, self._wanted = path, observer, wanted
        self._ggml = _functions(path)
        self._product, self._by_experts = self._numbers()
        self.by_experts: set[str] = set()
        self._error: BaseException | None = None
        self._checked = False
        self._shared = _Shared()
        self._every: frozenset[str] = frozenset()  # what the first graph had
        self._names: set[str] = set()  # what this one had so far
        self.callback = library.ggml_backend_sched_eval_callback(self._called)

    def during(self, compute: Callable[[], int]) -> int:
        """What `compute` returns, which has one graph computed and so calls back.

        Raises:
            Whatever the observer raised, and Ctrl-C.
        """
        status = _apart(compute, self._fail)
        self._every = self._every or frozenset(self._names)
        self._shared, self._names = _Shared(), set()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return status

    def _fail(self, error: BaseException) -> None:
        self._error = error

    def _numbers(self) -> tuple[int, int]:
        names = [self._ggml["ggml_op_name"](number) for number in range(_OPS)]
        if _PRODUCT not in names or _BY_EXPERTS not in names:
            raise self._strange("its products have other names")
        return names.index(_PRODUCT), names.index(_BY_EXPERTS)

    def _strange(self, what: str) -> UnsupportedFeature:
        return UnsupportedFeature(
            f"{self._path}: what goes into its products cannot be seen in this llama.cpp: {what}\n"
            "install the version of llama-cpp-python that the documents name"
        )

    def _called(self, address: int, ask: bool, _: object) -> bool:
        """Whether a node is wanted; later, when it is computed, whether llama.cpp shall go on."""
        if self._error is not None:
            return ask  # every node is wanted, and the next one is the last
        try:
            return self._asked(address) if ask else self._seen(address)
        except BaseException as error:
            self._fail(error)
            return ask

    def _asked(self, address: int) -> bool:
        if not self._checked:
            self._check(address)
        node = _Tensor.from_address(address)
        if node.op not in (self._product, self._by_experts):
            return False
        if not self._checked:
            for source in node.src[:2]:
                self._check(source)
            self._checked = True
        weight, rows = (_Tensor.from_address(source) for source in node.src[:2])
        if rows.type != F32 or (node.op == self._product and rows.ne[1] < MIN_ROWS):
            return False
        return self._wanted(_weight_name(weight))

    def _check(self, address: int) -> None:
        """Whether the struct is the one that is meant.

        Raises:
            UnsupportedFeature: it is not.
        """
        node, ggml = _Tensor.from_address(address), self._ggml
        agree = (  # the name first: it stands at the end of the struct, and whatever is new before it moves it
            ggml["ggml_get_name"](address) == node.name
            and ggml["ggml_get_data"](address) == node.data
            and ggml["ggml_nelements"](address) == math.prod(node.ne)
            and self._named(address, node.op)
        )
        if not agree:
            raise self._strange("a tensor of its graph is laid out in another way")

    def _named(self, address: int, op: int) -> bool:
        """Whether an operation is called as its number says; further numbers than are looked at may be any."""
        if not 0 <= op < _OPS:
            return True
        return self._ggml["ggml_op_name"](op) in (self._ggml["ggml_op_desc"](address), *_FAMILIES)

    def _seen(self, address: int) -> bool:
        node = _Tensor.from_address(address)
        weight = _Tensor.from_address(node.src[0])
        name = _weight_name(weight)
        if node.op == self._by_experts:
            self.by_experts.add(name)
            shares = self._shared.get(node.src[1], node.src[2], name, lambda: list(self._routed(node)))
        else:
            stack = weight.ne[2] * weight.ne[3]
            shares = self._shared.get(node.src[1], stack, name, lambda: list(self._stacked(node.src[1], weight)))
        for expert, rows in shares:
            self._observer.take(name, rows, expert)
        self._names.add(name)
        return not self._every or not self._names >= self._every  # all is seen: later layers need not be computed

    def _stacked(self, address: int, weight: _Tensor) -> Iterator[tuple[int | None, Floats]]:
        """All rows, or those of each of the weight's matrices, which the further axes are shared out to in turn."""
        values = self._array(address, F32, np.dtype("<f4"))
        first, second = weight.ne[2], weight.ne[3]
        if first * second == 1:
            yield None, values.reshape(-1, values.shape[-1])
            return
        for matrix in range(first * second):
            part = values[matrix // first :: second, matrix % first :: first]
            yield matrix, np.ascontiguousarray(part).reshape(-1, values.shape[-1])

    def _routed(self, node: _Tensor) -> Iterator[tuple[int, Floats]]:
        """The rows that each of the chosen experts gets: `ids` are (tokens, chosen), the rows of a token one for each
        of the chosen or one for all of them."""
        values = self._array(node.src[1], F32, np.dtype("<f4"))[0]
        ids = self._array(node.src[2], I32, np.dtype("<i4"))[0, 0]
        chosen = ids.shape[1]
        order = np.argsort(ids, axis=None, kind="stable")
        experts, starts = np.unique(ids.reshape(-1)[order], return_index=True)
        for expert, mine in zip(experts.tolist(), np.split(order, starts[1:]), strict=True):
            yield expert, values[mine // chosen, mine % chosen % values.shape[1]]

    def _array(self, address: int, kind: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A copy of a tensor's numbers, all four axes, the one that ggml has last first."""
        tensor = _Tensor.from_address(address)
        if tensor.type != kind or tensor.nb[0] != dtype.itemsize:
            raise self._strange("an input of a product is of an unknown type")
        data = np.empty(self._ggml["ggml_nbytes"](address), np.uint8)
        self._ggml["ggml_backend_tensor_get"](address, data.ctypes.data, 0, data.nbytes)
        return np.ndarray(tuple(reversed(tensor.ne)), dtype, data, strides=tuple(reversed(tensor.nb)))


class _Shared:
    """The last input, for the products that follow with the same one. Who asks again for the same weight is in
    another graph, where the same address is another tensor."""

    def __init__(self) -> None:
        self._key: tuple[int, int] | None = None
        self._names: set[str] = set()
        self._made: Any = None

    def get(self, address: int, how: int, name: str, make: Callable[[], Any]) -> Any:
        if self._key != (address, how) or name in self._names:
            self._key, self._names, self._made = (address, how), set(), make()
        self._names.add(name)
        return self._made


def _apart(compute: Callable[[], int], fail: Callable[[BaseException], None]) -> int:
    """What `compute` returns, called in a thread of its own; 0 where it was not begun.

    A handler of signals, called in the main thread alone, would raise in a callback, where ctypes drops what is
    raised. Here it raises in the thread that waits: `fail` is told, and whatever comes, `compute` is at its end after
    this, for what it works on may be freed next.
    """
    found: list[int] = []
    lock, begun, ended, given_up = threading.Lock(), threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        with lock:
            if given_up.is_set():
                return
            begun.set()
        try:
            found.append(compute())
        finally:
            ended.set()

    try:
        threading.Thread(target=work, daemon=True).start()
        while not ended.wait(0.2):  # a wait without end would keep Ctrl-C waiting on Windows
            pass
    except BaseException as error:
        with holding():
            fail(error)
            with lock:
                given_up.set()
            if begun.is_set():
                ended.wait()
    return found[0] if found else 0


def _weight_name(weight: _Tensor) -> str:
    """Without what a scheduler puts around the names of its copies: `CUDA0#blk.0.attn_k.weight#0`."""
    name = bytes(weight.name).decode("utf-8", "replace")
    parts = name.split("#")
    return parts[1] if len(parts) > 1 else name


def _functions(path: Path) -> dict[str, Any]:
    folder = Path(package("llama_cpp", f"{path}: running it").__file__).parent / "lib"
    library = next((each for each in sorted(folder.glob("*ggml-base.*")) if each.suffix in _LIBRARIES), None)
    try:
        loaded = ctypes.CDLL(str(library)) if library else None
        found = {name: getattr(loaded, name) for name in _FUNCTIONS}
    except (OSError, AttributeError) as error:
        raise UnsupportedFeature(f"{path}: this llama-cpp-python brings no ggml that can be asked: {error}") from error
    for name, (result, arguments) in _FUNCTIONS.items():
        found[name].restype, found[name].argtypes = result, arguments
    return found
