"""Models of transformers as they are traced: built of a config, without weights."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from converter.errors import UnknownArchitecture, short
from converter.extras import package
from converter.tracing.answer import Answer
from converter.tracing.export import Exporter, merged
from converter.tracing.guard import bounded, close_doors
from converter.tracing.names import fillings
from converter.tracing.parts import WORK, parts

#: Computed tables may have as many bytes as this together; a config can ask for any.
MAX_COMPUTED = 1 << 30
#: What a config says of how a model is loaded, not of what it is.
LOADING = ("auto_map", "quantization_config", "attn_implementation", "experts_implementation")


def traced(torch: Any, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Answer:
    """All graphs of a model, and what fills them.

    Raises:
        ConverterError: nothing here knows the model, its tensors are others, or torch cannot trace it.
    """
    transformers = package("transformers", WORK)
    exporter = Exporter(torch)
    close_doors()
    model = _built(torch, transformers, config, shapes, dtype)
    filled, unused = fillings(model, shapes)
    exporter.take(model, filled, MAX_COMPUTED)
    made = [exporter.export(part) for part in parts(model, exporter)]
    if len(made) == 3:  # an encoder, and a decoder's two ways
        made = [made[0], merged(exporter.ir, "decoder_model_merged", made[1], made[2])]
    ours = f"torch {torch.__version__.partition('+')[0]}"
    way = f"traced by {ours} as {type(model).__name__} of transformers {transformers.__version__}"
    return Answer(
        f"{way}, for no architecture data describes it", tuple(exporter.packed(each) for each in made), tuple(unused)
    )


# ------------------------------------------------------------------------------------------------ building


def _built(
    torch: Any, transformers: Any, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> Any:
    """The model with its parameters on no device, and its tables computed."""
    known = package("transformers.models.auto.configuration_auto", WORK).CONFIG_MAPPING
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise UnknownArchitecture(
            f"model_type {short(kind)}: no architecture data describes it, and transformers "
            f"{transformers.__version__} does not know it\n--tensors-only writes its tensors without a graph"
        )
    settings = known[kind].from_dict(_without_loading(config))
    chosen = _class_of(transformers, config, settings)
    ours = {"F32": torch.float32, "F16": torch.float16}[dtype]
    initialization = package("transformers.initialization", WORK)
    with ExitStack() as stack:
        stack.enter_context(initialization.no_init_weights())
        stack.enter_context(initialization.no_tie_weights())
        stack.enter_context(_parameters_nowhere(torch))
        stack.enter_context(bounded(torch, len(shapes)))
        attention = "sdpa" if getattr(chosen, "_supports_sdpa", False) else "eager"
        model = chosen._from_config(settings, dtype=ours, attn_implementation=attention)
    if ours is torch.float16:
        _keep_wide(torch, model)
    return model.eval()


def _without_loading(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_loading(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in LOADING and not key.startswith("_")
    }


def _class_of(transformers: Any, config: Mapping[str, Any], settings: Any) -> Any:
    """The class that the config names, if it is one of transformers' for such a config; else the one without a head."""
    names = config.get("architectures")
    model: Any = transformers.PreTrainedModel
    for name in names if isinstance(names, list) else []:
        found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
        if inspect.isclass(found) and issubclass(found, model) and _is_for(found, settings):
            return found
    base = package("transformers.models.auto.modeling_auto", WORK).MODEL_MAPPING
    if type(settings) not in base:
        raise UnknownArchitecture(f"{short(names)}: transformers has no such model of type {settings.model_type}")
    found = base[type(settings)]
    return found[0] if isinstance(found, tuple) else found


def _is_for(model: Any, settings: Any) -> bool:
    return model.config_class is type(settings)


@contextmanager
def _parameters_nowhere(torch: Any) -> Iterator[None]:
    """Parameters have a shape and no memory; what is computed as the model is made (tables of angles) has."""
    module = torch.nn.Module
    original = module.register_parameter

    def register(self: Any, name: str, parameter: Any) -> None:
        original(self, name, parameter)
        if parameter is not None and parameter.device.type != "meta":
            self._parameters[name] = torch.nn.Parameter(parameter.data.to("meta"), requires_grad=False)

    module.register_parameter = register
    try:
        yield
    finally:
        module.register_parameter = original


def _keep_wide(torch: Any, model: Any) -> None:
    """Parameters that transformers keeps in F32 where the rest is F16, because they overflow."""
    kept = {*(model._keep_in_fp32_modules or ()), *(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    for module_name, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and kept & {*module_name.split("."), name}:
                module._parameters[name] = torch.nn.Parameter(parameter.data.float(), requires_grad=False)
