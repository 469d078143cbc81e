"""What a person asks for: a source, and what shall become of it; values to compare, hash, store and send."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from converter.address import is_elsewhere, place, shown
from converter.errors import UsageError
from converter.mixture import Mixture
from converter.text import did_you_mean

PathLike = str | os.PathLike[str]
#: Which codes of a source that arrives quantized stay as a type of ggml: none, all that are exact, or also those that
#: lose a little.
KEEP_CODES = ("never", "exact", "near")
#: How `--scheme` finds the scale of a group: from its largest number, or by the least squared error.
SCALES = ("nearest", "mse")
#: How hard encoders try: 0 is the reference's bytes (docs/quantization.md).
EFFORTS = (0, 1, 2, 3)
#: Texts to calibrate with that need no file: what the model writes itself, tokens by lot.
OWN, RANDOM = TEXTS = ("own", "random")
#: Tokens that a calibration reads, where nothing says.
CALIBRATION_TOKENS = 8192


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        path: a file or folder of any format that `convert formats` lists as readable; of one that lies elsewhere, which
            is given by its address (`hf://org/model`, docs/remote.md), the path by which it goes through the program.
        format: its name, where content and extension do not tell.
        config: a Hugging Face folder to take config.json and tokenizer from.
        key: the part of a file that holds several (`optimizer.state`), "." for all; by default the model.
        adapters: folders of adapters (LoRA and its like) that are merged into it, in this order, and how strongly.
        base: the folder of the model that `path`, an adapter or a draft model, is for.
    """

    path: Path
    format: str | None = None
    config: Path | None = None
    key: str | None = None
    adapters: tuple[tuple[Path, float], ...] = ()
    base: Path | None = None

    def __init__(
        self,
        path: PathLike,
        format: str | None = None,
        config: PathLike | None = None,
        key: str | None = None,
        adapters: Iterable[tuple[PathLike, float]] = (),
        base: PathLike | None = None,
    ) -> None:
        _settle(
            self,
            path=_path(path),
            format=format,
            config=None if config is None else _path(config),
            key=key,
            adapters=tuple((_path(folder), float(strength)) for folder, strength in adapters),
            base=None if base is None else _path(base),
        )

    @property
    def paths(self) -> tuple[Path, ...]:
        """Everything that is read."""
        beside = (self.config, self.base, *(folder for folder, _ in self.adapters))
        return self.path, *(path for path in beside if path is not None)

    @classmethod
    def of(cls, source: PathLike | Source) -> Source:
        """A path alone is a source, too."""
        return source if isinstance(source, Source) else cls(source)

    def absolute(self) -> Source:
        """The same by names that do not depend on where a process stands."""
        config, base = (None if each is None else _absolute(each) for each in (self.config, self.base))
        adapters = [(_absolute(folder), strength) for folder, strength in self.adapters]
        return Source(_absolute(self.path), self.format, config, self.key, adapters, base)

    def as_dict(self) -> dict[str, Any]:
        """The source as JSON; paths as they were given, addresses without their queries."""
        return _as_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Source:
        """The source that `as_dict` described.

        Raises:
            UsageError: a field that does not exist, or no path.
        """
        made: Source = _from_dict(cls, values)
        return made


@dataclass(frozen=True)
class Types:
    """Which type each tensor gets, and how it is encoded.

    `recipe` is a mixture (of a file: `quant.recipe_files.read_recipe`); where no quant is named, it is that one's base.
    """

    quant: str | None = None
    recipe: Mixture | None = None
    pure: bool = False
    tensor_types: tuple[tuple[str, str], ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    leave_output: bool = False
    no_fallback: bool = False
    allow_requantize: bool = False
    imatrix: Path | None = None
    effort: int = 0
    include_weights: tuple[str, ...] = ()
    exclude_weights: tuple[str, ...] = ()
    via: str = "source"
    dtype: str | None = None
    keep_codes: str | None = None
    scheme: str | None = None
    scale: str = SCALES[0]
    exact: bool = False
    profile: str | None = None
    calibration: Path | None = None
    calibrate: Path | None = None

    def __post_init__(self) -> None:
        _settle(
            self,
            recipe=Mixture.of(self.recipe),
            calibration=None if self.calibration is None else Path(self.calibration),
            calibrate=None if self.calibrate is None else Path(self.calibrate),
            tensor_types=tuple((pattern, type_) for pattern, type_ in self.tensor_types),
            imatrix=None if self.imatrix is None else _path(self.imatrix),
            include_weights=tuple(self.include_weights),
            exclude_weights=tuple(self.exclude_weights),
        )


@dataclass(frozen=True)
class Model:
    """What the source is, where it does not tell, and what of it is wanted.

    `mmproj` asks for the projector of a folder, or is the file of the projector that a GGUF's folder shall have.
    """

    arch: str | None = None
    pre: str | None = None
    name: str | None = None
    tensors_only: bool = False
    no_tokenizer: bool = False
    mmproj: bool | Path = False
    no_nextn: bool = False
    no_head: bool = False
    dense_modules: bool = False

    def __post_init__(self) -> None:
        _settle(self, mmproj=self.mmproj if isinstance(self.mmproj, bool) else Path(self.mmproj))

    @property
    def parts(self) -> dict[str, bool]:
        """Which parts of a model are wanted that a runtime can do without."""
        return {"no_nextn": self.no_nextn, "no_head": self.no_head, "dense_modules": self.dense_modules}


@dataclass(frozen=True)
class Output:
    """The files to be: `format` is the target's, where its name does not tell; `strict` refuses every loss; `spread`
    are folders on other disks for some of the shards."""

    format: str | None = None
    strict: bool = False
    split_max_size: int | None = None
    split_max_tensors: int | None = None
    external_data: str = "auto"
    spread: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        _settle(self, spread=tuple(Path(folder) for folder in self.spread))


class Fields(TypedDict, total=False):
    """Every field of `Types`, `Model` and `Output`, for those who write them as keywords of a `Request`."""

    quant: str | None
    recipe: Mixture | None
    pure: bool
    tensor_types: Iterable[tuple[str, str]]
    output_type: str | None
    embedding_type: str | None
    leave_output: bool
    no_fallback: bool
    allow_requantize: bool
    imatrix: PathLike | None
    effort: int
    include_weights: Iterable[str]
    exclude_weights: Iterable[str]
    via: str
    dtype: str | None
    keep_codes: str | None
    scheme: str | None
    scale: str
    exact: bool
    profile: str | None
    calibration: PathLike | None
    calibrate: PathLike | None
    arch: str | None
    pre: str | None
    name: str | None
    tensors_only: bool
    no_tokenizer: bool
    mmproj: bool | PathLike
    no_nextn: bool
    no_head: bool
    dense_modules: bool
    format: str | None
    strict: bool
    split_max_size: int | None
    split_max_tensors: int | None
    external_data: str
    spread: Iterable[PathLike]


@dataclass(frozen=True, init=False)
class Request:
    """What shall become of a source. Names are those of the command line.

    It has three parts, and every field of a part is also a keyword:
    `Request(quant="q4_k_m", arch="llama")` is `Request(Types(quant="q4_k_m"), Model(arch="llama"))`.
    """

    types: Types
    model: Model
    output: Output

    def __init__(
        self,
        types: Types | None = None,
        model: Model | None = None,
        output: Output | None = None,
        **given: Unpack[Fields],
    ) -> None:
        unknown = [name for name in given if name not in FIELDS]
        if unknown:
            meant = did_you_mean(unknown[0], FIELDS) or f"; there are {', '.join(FIELDS)}"
            raise TypeError(f"Request has no field {unknown[0]!r}{meant}")
        for part, value in (("types", types or Types()), ("model", model or Model()), ("output", output or Output())):
            own: dict[str, Any] = {name: each for name, each in given.items() if FIELDS[name] == part}
            _settle(self, **{part: replace(value, **own)})

    def replace(self, **changes: Unpack[Fields]) -> Request:
        """A copy with some fields changed, whatever part they are in."""
        return Request(self.types, self.model, self.output, **changes)

    def settled(self) -> Request:
        """The same with the quant that follows from a mixture."""
        mixture = self.types.recipe
        return self if mixture is None or self.types.quant else self.replace(quant=mixture.base)

    def absolute(self) -> Request:
        """The same with names of files that do not depend on where a process stands."""
        given = {name: getattr(getattr(self, part), name) for name, part in FIELDS.items()}
        paths: Any = {name: _absolute(each) for name, each in given.items() if isinstance(each, Path)}
        return self.replace(**paths, spread=[_absolute(folder) for folder in self.output.spread])

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The request as JSON, a part in an object each; paths as they were given."""
        return {part: _as_dict(getattr(self, part)) for part in PARTS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> Request:
        """The request that `as_dict` described; what is not said has its default.

        Raises:
            UsageError: a part or a field that does not exist.
        """
        unknown = [name for name in values if name not in PARTS]
        if unknown:
            raise UsageError(f"a request has no part {unknown[0]!r}; there are {', '.join(PARTS)}")
        return cls(**{part: _from_dict(kind, values.get(part, {})) for part, kind in PARTS.items()})


PARTS: dict[str, Any] = {"types": Types, "model": Model, "output": Output}
#: Every field of a request, and the part that it is in.
FIELDS = {field.name: part for part, kind in PARTS.items() for field in fields(kind)}


def _path(given: PathLike) -> Path:
    try:
        return place(given)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _absolute(path: Path) -> Path:
    return path if is_elsewhere(path) else path.absolute()


def _settle(value: object, **given: Any) -> None:
    """The fields of a frozen value in the types that make it hashable, while it is made."""
    for name, each in given.items():
        object.__setattr__(value, name, each)


def _as_dict(value: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mixture):
        return value.as_dict()
    return shown(os.fspath(value)) if isinstance(value, Path) else value


def _from_dict(kind: Any, values: Mapping[str, Any]) -> Any:
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        known = ", ".join(field.name for field in fields(kind))
        raise UsageError(
            f"{kind.__name__} cannot be made of {', '.join(values) or 'nothing'}; it has {known}"
        ) from error
