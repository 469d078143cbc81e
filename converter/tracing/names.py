"""Which tensor of a checkpoint fills which parameter of a model of transformers: what loading it would do, in names.

Source: `convert_and_load_state_dict_in_model` of transformers 5 (renamings, then the prefix of the model inside).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from converter.errors import MissingTensor, ShapeMismatch, UnsupportedFeature, short


def fillings(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, str], list[str]]:
    """Parameters and buffers by name -> the tensor that fills each; and the tensors that fill none.

    Parameters that are tied are one afterwards.

    Raises:
        UnsupportedFeature: transformers would make a parameter of several tensors, or several of one.
        MissingTensor, ShapeMismatch: the checkpoint is not of this model.
    """
    wanted = dict(model.state_dict())
    renamed = _renamed(model, shapes, wanted)
    unused = [name for name in shapes if name not in renamed.values()]
    for name, source in renamed.items():
        if tuple(wanted[name].shape) != shapes[source]:
            raise ShapeMismatch(
                f"{short(source)} is {list(shapes[source])}, the model of config.json wants {list(wanted[name].shape)}"
            )
    missing = wanted.keys() - renamed.keys()
    model.tie_weights(missing_keys=missing)
    known = {id(parameter): renamed[name] for name, parameter in _parameters(model) if name in renamed}
    for name, parameter in _parameters(model):
        if name not in renamed and id(parameter) in known:
            renamed[name] = known[id(parameter)]
    lacking = sorted(name for name, _ in _parameters(model) if name not in renamed)
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise MissingTensor(f"no tensor for {short(lacking[0])}{more}, which {type(model).__name__} has")
    return renamed, [name for name in unused if not _meant_to_be_left(model, name)]


def _parameters(model: Any) -> Iterable[tuple[str, Any]]:
    named: Iterable[tuple[str, Any]] = model.named_parameters(remove_duplicate=False)
    return named


def _renamed(model: Any, shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Any]) -> dict[str, str]:
    rename, found = renaming(model, wanted), dict[str, str]()
    for source in shapes:
        name, converted = rename(source)
        if name not in wanted:
            continue
        if converted is not None:
            raise UnsupportedFeature(f"{short(source)}: transformers makes other tensors of it when it loads the model")
        if name in found:
            raise UnsupportedFeature(f"{short(found[name])} and {short(source)} are one parameter of the model")
        found[name] = source
    return found


def renaming(model: Any, wanted: Mapping[str, Any]) -> Callable[[str], tuple[str, str | None]]:
    """What a tensor of a checkpoint is called in the model, and by which conversion it gets there, if by one."""
    from converter.extras import package

    loading = package("transformers.core_model_loading", "names of tensors")
    conversions = package("transformers.conversion_mapping", "names of tensors").get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, loading.WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, loading.WeightConverter)]

    def rename(source: str) -> tuple[str, str | None]:
        name, converted = loading.rename_source_key(source, renamings, converters, model.base_model_prefix, wanted)
        return (source, None) if name not in wanted and source in wanted else (name, converted)

    return rename


def _meant_to_be_left(model: Any, name: str) -> bool:
    """Whether the model's own class says that such tensors have no use."""
    patterns = (*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
    return any(re.search(pattern, name) for pattern in patterns)
