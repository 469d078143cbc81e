"""Keras itself loads what we write from what it wrote, and computes the same."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.cli.main import main

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("torch")
keras: Any = pytest.importorskip("keras")
layers = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer", "ignore:__array__")


def convolutions() -> Any:
    """Layers with names of their own beside layers of the same class without, and state that is not trained."""
    at = first = keras.Input((8, 8, 3))
    at = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="first")(at))
    at = layers.GlobalAveragePooling2D()(layers.SeparableConv2D(5, 3, activation="relu")(at))
    return keras.Model(first, layers.Dense(3)(layers.Dropout(0.5)(layers.Dense(6, name="d")(at))))


def recurrent() -> Any:
    """Layers inside layers."""
    two_ways = layers.Bidirectional(layers.LSTM(5, return_sequences=True), name="both")
    at = [keras.Input((8, 4)), two_ways, layers.GRU(4), layers.Dense(2, name="out")]
    return keras.Sequential(at)


def attention() -> Any:
    """Models inside a model, one of them used twice, and the same names in both."""
    first, inner = keras.Input((8, 4)), keras.Input((8, 4))
    at = layers.LayerNormalization()(layers.Add()([first, layers.MultiHeadAttention(2, 3, name="mha")(first, first)]))
    parts = [keras.Input((8, 4)), layers.Dense(3, name="up"), layers.Dense(4, name="down")]
    twice = keras.Model(inner, layers.Dense(4, name="up")(inner), name="twice")
    return keras.Model(first, twice(twice(keras.Sequential(parts, name="ffn")(at))))


MODELS = (convolutions, recurrent, attention)
# dtype, tolerance relative to the largest output; the models compute in float32
TYPES = ((None, 0.0), ("f16", 1e-2), ("bf16", 1e-1))


def built(make: Callable[[], Any]) -> Any:
    """The model with numbers that no initializer makes, trained for a step so that its files have an optimizer."""
    model, rng = make(), np.random.default_rng(3)
    model.compile(optimizer="adam", loss="mse")
    x, y = inputs(model), model.compute_output_shape((2, *model.input_shape[1:]))
    model.train_on_batch(x, np.zeros(y, "f4"))
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(np.abs(rng.normal(size=weight.shape)) * 0.5)
    return model


def inputs(model: Any) -> Any:
    return np.random.default_rng(4).normal(size=(2, *model.input_shape[1:])).astype("f4")


def answers(model: Any) -> Any:
    return model(inputs(model), training=False).detach().cpu().numpy()


def converted(source: Path, target: Path, dtype: str | None, detour: bool) -> Path:
    """`target` from `source`, by way of safetensors if asked for."""
    options = ["--dtype", dtype] if dtype else []
    if detour:
        between = target.with_name("between.safetensors")
        assert main([str(source), str(between), "--force", *options]) == 0
        source = between
    assert main([str(source), str(target), *options]) == 0
    return target


@pytest.mark.parametrize("detour", [False, True], ids=["straight", "detour"])
@pytest.mark.parametrize("make", MODELS, ids=[make.__name__ for make in MODELS])
def test_keras_computes_the_same(tmp_path: Path, make: Callable[[], Any], detour: bool) -> None:
    """Weights alone, archives and legacy files, in the type they had and in others that the format can say."""
    model = built(make)
    expected = answers(model)
    model.save(tmp_path / "m.keras")
    model.save(tmp_path / "m.h5")
    model.save_weights(tmp_path / "m.weights.h5")
    for dtype, tolerance in TYPES:
        folder = tmp_path / f"as-{dtype}"
        folder.mkdir()
        loaded = []
        for source in ("m.weights.h5", "m.keras"):
            target = converted(tmp_path / source, folder / f"{source[2:3]}.weights.h5", dtype, detour)
            fresh = make()
            fresh.load_weights(target)
            loaded.append(fresh)
        loaded.append(keras.saving.load_model(converted(tmp_path / "m.keras", folder / "m.keras", dtype, detour)))
        if dtype != "bf16":
            legacy = converted(tmp_path / "m.h5", folder / "m.h5", dtype, detour)
            loaded.append(keras.saving.load_model(legacy, compile=False))
            loaded.append(make())
            loaded[-1].load_weights(legacy)
        for each in loaded:
            assert np.abs(answers(each) - expected).max() <= tolerance * np.abs(expected).max()


def test_what_keras_cannot_load_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keras decodes bfloat16 in its newer layout only, and loads no archive without a configuration."""
    model = built(recurrent)
    model.save(tmp_path / "m.h5")
    model.save_weights(tmp_path / "m.weights.h5")
    assert main([str(tmp_path / "m.h5"), str(tmp_path / "o.h5"), "--dtype", "bf16"]) == 12
    assert main([str(tmp_path / "m.weights.h5"), str(tmp_path / "o.keras")]) == 12
    assert "--dtype f16" in (said := capsys.readouterr().err) and ".weights.h5" in said
    assert not list(tmp_path.glob("o.*"))


def test_many_layers(tmp_path: Path) -> None:
    """Lists of names that Keras splits, because an attribute has at most 64 KiB."""
    names = [f"layer_{'x' * 2000}_{i}" for i in range(40)]
    many = [layers.Rescaling(1.0, name=name) for name in names]
    model = keras.Sequential([keras.Input((1,)), *many, layers.Dense(2, name="last")])
    model.save(tmp_path / "m.h5")
    for detour in (False, True):
        target = converted(tmp_path / "m.h5", tmp_path / f"{detour}.h5", None, detour)
        again = keras.saving.load_model(target, compile=False)
        assert np.array_equal(answers(again), answers(model)) and len(again.layers) == 41


def test_the_optimizer_travels_when_asked_for(tmp_path: Path) -> None:
    model = built(recurrent)
    model.save(tmp_path / "m.keras")
    assert main([str(tmp_path / "m.keras"), str(tmp_path / "o.keras"), "--key", "."]) == 0
    again = keras.saving.load_model(tmp_path / "o.keras")
    for before, after in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        assert np.array_equal(before.numpy(), after.numpy()), before.path


def test_archive_keeps_what_is_not_weights(tmp_path: Path) -> None:
    """Configuration, metadata and text assets to the byte."""
    model = built(recurrent)
    model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras", "a") as file:
        file.writestr("assets/lookup/vocabulary.txt", "eins\nzwei\n")
    assert main([str(tmp_path / "m.keras"), str(tmp_path / "o.keras")]) == 0
    with zipfile.ZipFile(tmp_path / "m.keras") as before, zipfile.ZipFile(tmp_path / "o.keras") as after:
        assert after.testzip() is None
        assert sorted(after.namelist()) == sorted(before.namelist())
        for name in ("config.json", "metadata.json", "assets/lookup/vocabulary.txt"):
            assert after.read(name) == before.read(name)
        assert json.loads(after.read("config.json"))["class_name"] == "Sequential"
