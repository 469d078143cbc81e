"""PyTorch models by transformers: Hugging Face folders, and weights in a file with config.json beside it.

Everything is computed in float32 on the processor, whatever the weights are stored in. No code of a model's folder is
run, and no pickle: a folder's safetensors are loaded by transformers itself, all other weights by our own reader.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import MissingPart, MissingTensor, UnsupportedFeature, short
from converter.extras import package
from converter.formats.registry import open_checkpoint
from converter.runtimes.base import Floats, RuntimeTokenizer, Writer, failures
from converter.runtimes.torch_products import Seen, watched
from converter.tensors.streams import values
from converter.tokenizers import FILES
from converter.tracing.names import renaming

NAME = "transformers"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
LOCAL = {"local_files_only": True, "trust_remote_code": False}
VOCABULARIES = tuple(name for name in FILES if name.endswith((".model", "tokenizer.json", "vocab.json", "vocab.txt")))
# Parameters that transformers makes up where a checkpoint has none, and the mean over the tokens does not use.
UNUSED = "pooler."


def tokenizer(path: Path, special: bool = True) -> RuntimeTokenizer | None:
    """The tokenizer of the model's folder, as transformers loads it; None where the folder has none.

    `special`: a special token that is written out in a text is that token.
    """
    folder = _folder(path)
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return None
    transformers = package(NAME, f"{path}: running it")
    with failures(folder, NAME), _quiet(transformers):
        loaded = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
        start = loaded("a").input_ids[:1]

    def encode(text: str) -> list[int]:
        with failures(folder, NAME), _quiet(transformers):
            return [int(token) for token in loaded(text, split_special_tokens=not special).input_ids]

    return RuntimeTokenizer(encode, start[0] if start == [loaded.bos_token_id] else None)


def made_for(path: Path) -> int | None:
    """Tokens of a text that a model was made for, where its config says so."""
    transformers = package(NAME, f"{path}: running it")
    with failures(path, NAME), _quiet(transformers):
        return _made_for(transformers.AutoConfig.from_pretrained(_folder(path), **LOCAL))


class Transformers(Writer):
    """A model of transformers. What its architecture is called decides between logits and embeddings.

    Args:
        path: the folder, or the weights.
        context: of no account: texts may be of any length.
        threads: to compute with.
        exact: attention and experts are computed step by step, as they are defined, and not by what is faster.

    Raises:
        MissingDependency: torch or transformers is not installed.
        MissingPart: no config.json.
        MissingTensor: weights that the model needs and the checkpoint has not.
        UnsupportedFeature: transformers refuses it.
    """

    def __init__(self, path: Path, context: int, threads: int, *, exact: bool = False) -> None:
        self._exact, self._cache = exact, None
        self._path, work = path, f"{path}: running it"
        self._torch, self._transformers = package("torch", work), package(NAME, work)
        self.name = f"{NAME} {self._transformers.__version__}"
        self._torch.set_num_threads(threads)
        folder = _folder(path)
        if not (folder / "config.json").is_file():
            raise MissingPart(f"{path}: transformers needs the config.json of the model's folder beside it")
        with failures(path, NAME), _quiet(self._transformers):
            config = self._transformers.AutoConfig.from_pretrained(folder, **LOCAL)
            self.kind = "logits" if _is_causal(config) else "embedding"
            self.context = _made_for(config)
            self._model: Any = self._load(path, config)

    def _load(self, path: Path, config: Any) -> Any:
        causal = getattr(self._transformers, f"AutoModelFor{'Seq2SeqLM' if config.is_encoder_decoder else 'CausalLM'}")
        kind = causal if self.kind == "logits" else self._transformers.AutoModel
        options = {"config": config, "dtype": self._torch.float32, "output_loading_info": True, **LOCAL}
        if self._exact:
            options |= {"attn_implementation": "eager", "experts_implementation": "eager"}
        if path.is_dir() and any((path / name).is_file() for name in WEIGHTS):
            model, found = kind.from_pretrained(path, use_safetensors=True, **options)
        else:
            with self._torch.device("meta"):  # for its class alone: the automatic ones want a folder
                empty = kind.from_config(config, trust_remote_code=False)
            model, found = type(empty).from_pretrained(None, state_dict=self._state(path), **options)
        missing = sorted(name for name in found["missing_keys"] if self.kind == "logits" or UNUSED not in name)
        if missing:
            raise MissingTensor(
                f"{path}: transformers finds no weights for {short(missing[0])}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            )
        return model.eval()

    def _state(self, path: Path) -> dict[str, Any]:
        with open_checkpoint(path) as checkpoint:
            found = {
                name: values(tensor, 0, tensor.info.n_rows).reshape(tensor.info.shape)
                for name, tensor in checkpoint.tensors.items()
            }
            checkpoint.check()
        return {name: self._torch.tensor(array) for name, array in found.items()}

    def logits(self, ids: Sequence[int], first: int) -> Floats:
        with failures(self._path, NAME), self._torch.inference_mode():
            found = self._model(input_ids=self._torch.tensor([list(ids)]), use_cache=False).logits
        rows: Floats = found[0, first:-1].numpy()
        return rows

    def embedding(self, ids: Sequence[int]) -> Floats:
        tokens = self._torch.tensor([list(ids)])
        with failures(self._path, NAME), self._torch.inference_mode():
            states = self._model(input_ids=tokens, attention_mask=self._torch.ones_like(tokens)).last_hidden_state
        mean: Floats = states[0].mean(0).numpy()
        return mean

    def read(self, ids: Sequence[int]) -> None:
        given: dict[str, Any] = {"input_ids": self._torch.tensor([list(ids)])}
        # A decoder reads what its encoder reads.
        if self._model.config.is_encoder_decoder:
            start = self._model.config.decoder_start_token_id
            given["decoder_input_ids"] = self._torch.tensor([[ids[0] if start is None else start, *ids[:-1]]])
        if self.kind == "logits":
            given["use_cache"] = False
        with failures(self._path, NAME), self._torch.inference_mode():
            self._model(**given)

    def controls(self) -> NDArray[np.bool_]:
        found = np.zeros(self._model.config.get_text_config().vocab_size, np.bool_)
        if any((_folder(self._path) / name).is_file() for name in VOCABULARIES):
            with failures(self._path, NAME), _quiet(self._transformers):
                loaded = self._transformers.AutoTokenizer.from_pretrained(_folder(self._path), **LOCAL)
            said = {token for token, each in loaded.added_tokens_decoder.items() if each.special}
            found[[token for token in {*loaded.all_special_ids, *said} if token < len(found)]] = True
            found[len(loaded) :] = True
        return found

    def continued(self, last: Sequence[int], position: int) -> Floats:
        if self._model.config.is_encoder_decoder:
            raise UnsupportedFeature(f"{self._path}: answers a text and begins none; give one by --text FILE")
        with failures(self._path, NAME), self._torch.inference_mode():
            tokens = self._torch.tensor([[token] for token in last])
            past = self._cache if position else None
            found = self._model(input_ids=tokens, past_key_values=past, use_cache=True)
        self._cache = found.past_key_values
        rows: Floats = found.logits[:, -1].numpy()
        return rows

    @contextmanager
    def products(self, wanted: Collection[str], seen: Seen) -> Iterator[None]:
        """Tell `seen` of the products with these parameters meanwhile."""
        parameters = {name: each for name, each in self._model.named_parameters() if name in wanted}
        with watched(self._torch, parameters, seen):
            yield

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of all parameters, by name."""
        return {name: tuple(each.shape) for name, each in self._model.named_parameters()}

    def filled(self, tensors: Iterable[str]) -> dict[str, str]:
        """Which parameter each tensor of the checkpoint fills, or a part of it; those that fill none are left out."""
        known, rename = self.shapes, renaming(self._model, self._model.state_dict())
        return {name: filled for name in tensors if (filled := rename(name)[0]) in known}

    def close(self) -> None:
        self._model = self._cache = None


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _made_for(config: Any) -> int | None:
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found


def _is_causal(config: Any) -> bool:
    return any(str(name).endswith(CAUSAL) for name in config.architectures or ())


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no warnings: what is wrong with a model is raised."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
