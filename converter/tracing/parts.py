"""The graphs of a model of transformers, as clients load them: what each takes, gives, and how the model computes it.

An encoder-decoder is an encoder and a decoder, which has two ways (without what it keeps of earlier tokens, and with);
a decoder is one graph with its cache; anything else is one graph of what its forward takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from converter.errors import UnsupportedFeature
from converter.extras import package

WORK = "a graph of a model that no architecture data describes"
#: Sizes while tracing: 0 and 1 would be taken for what they are, and equal ones for one another.
BATCH, LENGTH, PAST, ENCODED = 2, 5, 3, 7
IDS, FLOATS = "int64", "float32"
STATES = "last_hidden_state"
NO_CACHE = "what {} keeps of earlier tokens is not keys and values of every layer; no graph can be traced of it yet"
#: Names of axes that may have any size, "" where one is fixed.
Axes = tuple[str, ...]
TEXT: Axes = ("batch_size", "sequence_length")
ENCODED_TEXT: Axes = ("batch_size", "encoder_sequence_length")
EARLIER: Axes = ("batch_size", "", "past_sequence_length", "")
SO_FAR: Axes = ("batch_size", "", "total_sequence_length", "")
CROSS: Axes = ("batch_size", "", "encoder_sequence_length", "")
LOGITS: Axes = (*TEXT, "")


@dataclass(frozen=True)
class Input:
    """An input of a graph: its shape while it is traced, and the names of the axes that may have any size."""

    name: str
    kind: str
    shape: tuple[int, ...]
    axes: Axes


@dataclass(frozen=True)
class Part:
    """One graph to be: what it takes, what it gives, and how the model computes it.

    `run(model, inputs by name)` gives the outputs by name. `axes` are the names of the axes of outputs.
    """

    name: str
    inputs: tuple[Input, ...]
    run: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]
    axes: Mapping[str, Axes]


class Dry(Protocol):
    """Who can run a model without numbers: `kind` is the type that it calculates in, `inside` are inputs in that."""

    kind: str

    def inside(self, inputs: Sequence[Input]) -> dict[str, Any]: ...
    def dry(self, run: Callable[[], Any]) -> Any: ...


def parts(model: Any, exporter: Dry) -> list[Part]:
    """The graphs of a model; three of an encoder-decoder: the encoder, the decoder's way without a cache, and with.

    Raises:
        UnsupportedFeature: it takes, or keeps, what is not known here.
    """
    generates = hasattr(model, "can_generate") and model.can_generate()
    if generates and getattr(model.config, "is_encoder_decoder", False):
        return _encoder_decoder(model, exporter)
    if generates and model.main_input_name == "input_ids":
        if "past_key_values" not in _arguments(model):
            raise UnsupportedFeature(NO_CACHE.format(type(model).__name__))
        return [_decoder(model, exporter)]
    return [_plain(model)]


def _arguments(module: Any) -> frozenset[str]:
    return frozenset(inspect.signature(module.forward).parameters)


def _ids(name: str, length: int, axis: str = TEXT[1]) -> Input:
    return Input(name, IDS, (BATCH, length), (TEXT[0], axis))


def _plain(model: Any) -> Part:
    """A model of one call: every input of its forward that has a name whose meaning is known here."""
    arguments = _arguments(model)
    texts = ["input_ids", "attention_mask", "token_type_ids", "decoder_input_ids"] if "input_ids" in arguments else []
    if getattr(model.config, "type_vocab_size", 2) < 2:
        texts = [name for name in texts if name != "token_type_ids"]
    inputs = [_ids(name, LENGTH) for name in texts if name in arguments]
    if texts and "bbox" in arguments:
        inputs.append(Input("bbox", IDS, (BATCH, LENGTH, 4), (*TEXT, "")))
    inputs += [_signal(model, name) for name in ("pixel_values", "input_values", "input_features") if name in arguments]
    if not inputs:
        raise UnsupportedFeature(f"{type(model).__name__} takes none of the inputs that are known here")

    def run(model: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(model(**given, return_dict=True))

    return Part("model", tuple(inputs), run, {})


def _signal(model: Any, name: str) -> Input:
    """An image or a sound in the shape that the config says."""
    config = model.config
    vision, audio = getattr(config, "vision_config", None) or config, getattr(config, "audio_config", None) or config
    if name == "pixel_values":
        size = getattr(vision, "image_size", None) or 224
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (BATCH, getattr(vision, "num_channels", 3), height, width)
        return Input(name, FLOATS, shape, ("batch_size", "num_channels", "height", "width"))
    bins = getattr(audio, "num_mel_bins", None)
    if bins and (most := getattr(audio, "max_source_positions", None)) and not hasattr(audio, "input_feat_per_channel"):
        return Input(name, FLOATS, (BATCH, bins, 2 * most), ("batch_size", "feature_size", "encoder_sequence_length"))
    if bins and (most := getattr(audio, "max_length", None)) and name == "input_values":
        return Input(name, FLOATS, (BATCH, most, bins), ("batch_size", "frames", "feature_size"))
    for key in ("input_feat_per_channel", "feature_projection_input_dim"):
        if width := getattr(audio, key, None):
            return Input(name, FLOATS, (BATCH, 128, width), ("batch_size", "frames", "feature_size"))
    if name == "input_values":
        return Input(name, FLOATS, (BATCH, 16000), ("batch_size", "sequence_length"))
    raise UnsupportedFeature(f"{type(model).__name__}: its config.json does not say which shape {name} has")


def _decoder(model: Any, exporter: Dry) -> Part:
    """A language model with its cache."""
    caches = package("transformers.cache_utils", WORK)
    ids, mask = _ids("input_ids", LENGTH), _ids("attention_mask", PAST + LENGTH, "total_sequence_length")
    placed = (_ids("position_ids", LENGTH),) if "position_ids" in _arguments(model) else ()
    out = exporter.dry(lambda: model(**exporter.inside([ids]), use_cache=True))
    layers = _layers(model, out.get("past_key_values"))
    past = _past("", layers, exporter.kind, PAST, EARLIER)

    def run(model: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
        cache = caches.DynamicCache()
        _refill(cache, given, "", len(layers))
        rest = {name: value for name, value in given.items() if not name.startswith(PAST_NAME)}
        out = model(**rest, past_key_values=cache, use_cache=True, return_dict=True)
        return {"logits": out.logits, **_present("", out.past_key_values)}

    return Part("model", (ids, mask, *placed, *past), run, {"logits": LOGITS, **_axes_of_present(past)})


# ------------------------------------------------------------------------------------- encoders and decoders


def _encoder_decoder(model: Any, exporter: Dry) -> list[Part]:
    """An encoder, and a decoder without what it keeps of earlier tokens and with it."""
    main = model.main_input_name
    text = main == "input_ids"
    axis = ENCODED_TEXT[1]
    inputs = [_ids(name, ENCODED, axis) for name in ("input_ids", "attention_mask")] if text else [_signal(model, main)]
    first = exporter.dry(lambda: _encode(model, exporter.inside(inputs)))[STATES]
    length, width = int(first.shape[1]), int(first.shape[2])
    states = Input("encoder_hidden_states", FLOATS, (BATCH, length, width), (*ENCODED_TEXT, ""))
    given = (*((_ids("encoder_attention_mask", ENCODED, axis),) if text else ()), _ids("input_ids", LENGTH), states)
    out = exporter.dry(lambda: _decode(model, exporter.inside(given))).past_key_values
    own, cross = _layers(model, out.self_attention_cache), _layers(model, out.cross_attention_cache)
    past = [
        *_past(".decoder", own, exporter.kind, PAST, EARLIER),
        *_past(".encoder", cross, exporter.kind, length, CROSS),
    ]
    axes = {"logits": LOGITS, **_axes_of_present(past)}
    return [
        Part("encoder_model", tuple(inputs), _encode, {STATES: (*ENCODED_TEXT, "")}),
        Part("decoder_model", given, _begin, axes),
        Part("decoder_with_past_model", (*given, *sorted(past, key=_layer_of)), _going_on(len(own)), axes),
    ]


def _encode(model: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    return {STATES: model.get_encoder()(**given, return_dict=True).last_hidden_state}


def _decode(model: Any, given: Mapping[str, Any], cache: Any = None) -> Any:
    outputs = package("transformers.modeling_outputs", WORK)
    mask = given.get("encoder_attention_mask")
    return model(
        encoder_outputs=outputs.BaseModelOutput(last_hidden_state=given["encoder_hidden_states"]),
        decoder_input_ids=given["input_ids"], past_key_values=cache, use_cache=True, return_dict=True,
        **({} if mask is None else {"attention_mask": mask}),
    )  # fmt: skip


def _begin(model: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    out = _decode(model, given)
    kept = out.past_key_values
    own, cross = _present(".decoder", kept.self_attention_cache), _present(".encoder", kept.cross_attention_cache)
    return {"logits": out.logits, **dict(sorted((own | cross).items(), key=lambda each: _layer_of(each[0])))}


def _going_on(n_layer: int) -> Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]:
    caches = package("transformers.cache_utils", WORK)

    def run(model: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
        cache = caches.EncoderDecoderCache(caches.DynamicCache(), caches.DynamicCache())
        _refill(cache.self_attention_cache, given, ".decoder", n_layer)
        _refill(cache.cross_attention_cache, given, ".encoder", n_layer)
        cache.is_updated = dict.fromkeys(range(n_layer), True)  # or the states would be projected again
        out = _decode(model, given, cache)
        return {"logits": out.logits, **_present(".decoder", out.past_key_values.self_attention_cache)}

    return run


# ---------------------------------------------------------------------------------------------------- caches

PAST_NAME, PRESENT_NAME = "past_key_values", "present"
#: Of a layer, heads and width of its keys and of its values.
Layer = tuple[tuple[int, int], tuple[int, int]]


def _layers(model: Any, cache: Any) -> list[Layer]:
    """What a cache keeps.

    Raises:
        UnsupportedFeature: not keys and values of every layer.
    """
    found = []
    for layer in getattr(cache, "layers", ()):
        pair = [getattr(layer, "keys", None), getattr(layer, "values", None)]
        sizes = [(int(each.shape[1]), int(each.shape[3])) for each in pair if each is not None and each.dim() == 4]
        if len(sizes) != 2:
            raise UnsupportedFeature(NO_CACHE.format(type(model).__name__))
        found.append((sizes[0], sizes[1]))
    if not found:
        raise UnsupportedFeature(NO_CACHE.format(type(model).__name__))
    return found


def _past(which: str, layers: Sequence[Layer], kind: str, length: int, axes: Axes) -> list[Input]:
    return [
        Input(f"{PAST_NAME}.{at}{which}.{name}", kind, (BATCH, heads, length, width), axes)
        for at, layer in enumerate(layers)
        for name, (heads, width) in zip(("key", "value"), layer, strict=True)
    ]


def _layer_of(name: Input | str) -> int:
    return int((name if isinstance(name, str) else name.name).split(".")[1])


def _refill(cache: Any, given: Mapping[str, Any], which: str, n_layer: int) -> None:
    for at in range(n_layer):
        stem = f"{PAST_NAME}.{at}{which}"
        cache.update(given[f"{stem}.key"], given[f"{stem}.value"], at)


def _present(which: str, cache: Any) -> dict[str, Any]:
    return {
        f"{PRESENT_NAME}.{at}{which}.{name}": value
        for at, layer in enumerate(cache.layers)
        for name, value in (("key", layer.keys), ("value", layer.values))
    }


def _axes_of_present(past: Sequence[Input]) -> dict[str, Axes]:
    return {each.name.replace(PAST_NAME, PRESENT_NAME): CROSS if each.axes == CROSS else SO_FAR for each in past}
