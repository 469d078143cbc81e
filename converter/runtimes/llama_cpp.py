"""GGUF models by llama.cpp, through the C interface that llama-cpp-python binds.

The classes of that package compile a model's chat template and copy all logits; neither is wanted here. Attention's
cache is in float32 and flash attention off, so that a comparison sees the weights and not the cache; everything runs on
the processor.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import UnsupportedFeature
from converter.extras import package
from converter.formats.registry import open_checkpoint
from converter.metadata import Value
from converter.runtimes.base import Floats, RuntimeTokenizer, Writer
from converter.runtimes.products import Products

NAME = "llama_cpp"
ERROR = 4  # GGML_LOG_LEVEL_ERROR
BATCH = 128  # positions computed at once; what they need is allocated for as many rows of logits


def tokenizer(path: Path, special: bool = True) -> RuntimeTokenizer | None:
    """The vocabulary in the file, as llama.cpp cuts text with it; None where there is none ("no_vocab").

    `special`: a special token that is written out in a text is that token.
    """
    library = package(NAME, f"{path}: running it")
    if not _metadata(path).get("tokenizer.ggml.tokens"):
        return None
    model = _load(library, path, vocab_only=True)
    vocabulary = library.llama_model_get_vocab(model)

    def encode(text: str) -> list[int]:
        data = text.encode()
        count = -library.llama_tokenize(vocabulary, data, len(data), None, 0, True, special)
        ids = (library.llama_token * max(count, 1))()
        library.llama_tokenize(vocabulary, data, len(data), ids, count, True, special)
        return list(ids)[:count]

    weakref.finalize(encode, library.llama_model_free, model)
    bos = library.llama_vocab_bos(vocabulary) if library.llama_vocab_get_add_bos(vocabulary) else None
    return RuntimeTokenizer(encode, bos)


class LlamaCpp(Writer):
    """A model of llama.cpp. Its metadata decide between logits and embeddings.

    Args:
        path: the GGUF file.
        context: tokens of a text that it takes at most.
        threads: to compute with.
        products: is told what goes into matrix products.
        texts: how many are continued at once, each of `context` tokens.

    Raises:
        MissingDependency: llama-cpp-python is not installed.
        FormatError: our own reader, which looks at the file first, refuses it.
        UnsupportedFeature: llama.cpp refuses it.
    """

    def __init__(
        self, path: Path, context: int, threads: int, *, products: Products | None = None, texts: int = 1
    ) -> None:
        self._path, self._library = path, package(NAME, f"{path}: running it")
        self._products = products
        self.name = f"llama.cpp ({NAME} {self._library.__version__})"
        self.kind = "embedding" if _is_encoder(_metadata(path)) else "logits"
        self._context: Any = None
        self._model: Any = _load(self._library, path)
        self.context = self._library.llama_model_n_ctx_train(self._model) or None
        self._vocabulary = self._library.llama_vocab_n_tokens(self._library.llama_model_get_vocab(self._model))
        try:
            self._start(context, threads, texts)
        except BaseException:
            self.close()
            raise

    def _start(self, context: int, threads: int, texts: int) -> None:
        library, options = self._library, self._library.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_seq_max = context * texts, max(context, texts), texts
        options.n_ubatch = context if self.kind == "embedding" else min(context, BATCH)
        options.n_threads = options.n_threads_batch = threads
        options.type_k = options.type_v = library.GGML_TYPE_F32
        options.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if self.kind == "embedding":
            options.embeddings, options.pooling_type = True, library.LLAMA_POOLING_TYPE_MEAN
        if self._products is not None:
            options.cb_eval = self._products.callback
        with _messages(library) as errors:
            self._context = library.llama_init_from_model(self._model, options)
        if not self._context:
            raise _refused(self._path, errors)

    def logits(self, ids: Sequence[int], first: int) -> Floats:
        self._decode(ids, range(first, len(ids) - 1))
        shape = (len(ids) - 1 - first, self._vocabulary)
        return np.ctypeslib.as_array(self._library.llama_get_logits(self._context), shape=shape)

    def embedding(self, ids: Sequence[int]) -> Floats:
        self._decode(ids, range(len(ids)))
        found = self._library.llama_get_embeddings_seq(self._context, 0)
        return np.ctypeslib.as_array(found, shape=(self._library.llama_model_n_embd(self._model),)).copy()

    def read(self, ids: Sequence[int]) -> None:
        step = len(ids) if self.kind == "embedding" else BATCH
        self._forget()
        for start in range(0, len(ids), step):
            part = range(start, min(start + step, len(ids)))
            self._compute([(0, position, ids[position], True) for position in part])

    def continued(self, last: Sequence[int], position: int) -> Floats:
        if position == 0:
            self._forget()
        self._compute([(text, position, token, True) for text, token in enumerate(last)])
        found = self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, shape=(len(last), self._vocabulary))

    def controls(self) -> NDArray[np.bool_]:
        library, vocabulary = self._library, self._library.llama_model_get_vocab(self._model)
        if library.llama_vocab_type(vocabulary) == library.LLAMA_VOCAB_TYPE_NONE:
            return np.zeros(self._vocabulary, np.bool_)
        hidden = library.LLAMA_TOKEN_ATTR_CONTROL | library.LLAMA_TOKEN_ATTR_UNUSED | library.LLAMA_TOKEN_ATTR_UNKNOWN
        return np.array([
            bool(library.llama_vocab_get_attr(vocabulary, token) & hidden)
            or library.llama_vocab_is_eog(vocabulary, token)
            for token in range(self._vocabulary)
        ])  # fmt: skip

    def _decode(self, ids: Sequence[int], wanted: range) -> None:
        """Compute all positions from nothing, and keep the outputs of those that are wanted."""
        self._forget()
        self._compute([(0, position, token, position in wanted) for position, token in enumerate(ids)])

    def _forget(self) -> None:
        memory = self._library.llama_get_memory(self._context)
        if memory:
            self._library.llama_memory_clear(memory, True)

    def _compute(self, tokens: Sequence[tuple[int, int, int, bool]]) -> None:
        """The text's number, position, token and whether its output is kept, of each."""
        library = self._library
        batch = library.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for at, (text, position, token, wanted) in enumerate(tokens):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, text
            batch.logits[at] = wanted
        with _messages(library) as errors:
            if self._products is None:
                status = library.llama_decode(self._context, batch)
            else:
                status = self._products.during(lambda: library.llama_decode(self._context, batch))
        library.llama_batch_free(batch)
        if status != 0:
            raise _refused(self._path, errors)

    def close(self) -> None:
        with _messages(self._library):
            if self._context:
                self._library.llama_free(self._context)
            if self._model:
                self._library.llama_model_free(self._model)
        self._context = self._model = None


def _load(library: Any, path: Path, vocab_only: bool = False) -> Any:
    options = library.llama_model_default_params()
    options.n_gpu_layers, options.vocab_only = 0, vocab_only
    with _messages(library) as errors:
        library.llama_backend_init()
        model = library.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        raise _refused(path, errors)
    return model


def _refused(path: Path, errors: list[str]) -> UnsupportedFeature:
    said = errors[0].strip().splitlines()[0][:300] if errors else "it does not say why"
    return UnsupportedFeature(f"{path}: llama.cpp does not run it: {said}")


def _metadata(path: Path) -> dict[str, Any]:
    """The scalars of the header, and of the arrays their lengths."""
    with open_checkpoint(path) as checkpoint:
        return {key: each.value if isinstance(each, Value) else len(each) for key, each in checkpoint.config.items()}


def _is_encoder(metadata: dict[str, Any]) -> bool:
    name = metadata.get("general.architecture")
    return f"{name}.pooling_type" in metadata or metadata.get(f"{name}.attention.causal") is False


@contextmanager
def _messages(library: Any) -> Iterator[list[str]]:
    """The errors that llama.cpp logs meanwhile; nothing is printed."""
    errors: list[str] = []

    def keep(level: int, text: bytes, _: object) -> None:
        if level == ERROR:
            errors.append(text.decode("utf-8", "replace"))

    callback, before, data = library.llama_log_callback(keep), library.llama_log_callback(), ctypes.c_void_p()
    library.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    library.llama_log_set(callback, None)
    try:
        yield errors
    finally:
        library.llama_log_set(before, data)
