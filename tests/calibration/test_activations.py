"""What llama.cpp shows of its products, against torch; and the texts that a model reads."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support import architectures, models
from support.activations import Inputs, by_torch

import converter
from converter.calibration import texts
from converter.calibration.activations import and_output, block_of, in_block, observe, runnable
from converter.errors import Cancelled, UnsupportedFeature, UsageError
from converter.runtimes import products
from converter.runtimes.llama_cpp import LlamaCpp
from converter.storage.slabs import Progress

pytest.importorskip("llama_cpp")

KJV, STORIES = models.FIXTURES / "kjv-llama", models.FIXTURES / "stories260K"
HELD_OUT = models.FIXTURES / "kjv-heldout.txt"
# float32 on both sides, in other orders of summing. A model of random weights has routers whose choices are close to
# one another, so that a last bit may send a token to another expert: those rows are counted below.
TOLERANCE = 2e-4
ROUGH = {"gemma2-tiny": 2e-3}  # ggml has GELU as a table in half precision

Make = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`made("mixtral-96")`: the folder of a model, and its GGUF in F32."""
    folder = tmp_path_factory.mktemp("models")

    def make(name: str) -> tuple[Path, Path]:
        path = folder / f"{name}.gguf"
        source = models.FIXTURES / name if name in models.FIXTURE_MODELS else folder / name
        if not path.exists():
            if name in models.MODELS:
                models.build_model(name, folder)
            elif name not in models.FIXTURE_MODELS:
                architectures.build(name, folder)
            converter.convert(source, path, converter.Request(quant="f32"))
        return source, path

    return make


@pytest.fixture(scope="module")
def kjv(made: Make) -> Path:
    return made("kjv-llama")[1]


@pytest.mark.parametrize("name", ["kjv-llama", "stories260K", "qwen2-96", "gemma2-tiny", "mixtral-96", "qwen3moe-96"])
def test_inputs_are_those_of_torch(name: str, made: Make) -> None:
    pytest.importorskip("transformers")
    folder, path = made(name)
    chunks, inputs = texts.drawn(path, context=96, chunks=3).chunks, Inputs()
    seen = observe(path, chunks, inputs, wanted=and_output, threads=1)
    wanted, found = by_torch(folder, chunks).squares(), inputs.squares()
    if "output.weight" not in seen.seen:  # its weight is the embedding's
        del wanted["output.weight", None]
    assert found.keys() == wanted.keys()
    tolerance = ROUGH.get(name, TOLERANCE)
    for key, (sums, count) in wanted.items():
        assert found[key][1] == count, key
        np.testing.assert_allclose(found[key][0], sums, rtol=tolerance, atol=tolerance * sums.mean(), err_msg=str(key))
    assert seen.by_experts == {weight for weight, expert in wanted if expert is not None}
    assert seen.tokens == 3 * 96


def test_a_quantized_model_shows_what_it_computes(kjv: Path, tmp_path: Path) -> None:
    """Its inputs are near those of the original, and not they."""
    converter.convert(KJV, tmp_path / "q.gguf", converter.Request(quant="q4_k_m"))
    chunks = texts.from_file(kjv, HELD_OUT, 128, 2).chunks
    both = []
    for path in (kjv, tmp_path / "q.gguf"):
        inputs = Inputs()
        observe(path, chunks, inputs, threads=1)
        both.append(inputs.squares()["blk.5.ffn_down.weight", None][0])
    ratio = both[1].sum() / both[0].sum()
    assert 0.8 < ratio < 1.25 and ratio != 1


def test_blocks_are_seen_one_at_a_time(kjv: Path) -> None:
    """What is seen of one block alone is what is seen of it among all."""
    chunks = texts.drawn(kjv, 64, 2).chunks
    every, one = Inputs(), Inputs()
    observe(kjv, chunks, every, threads=1)
    seen = observe(kjv, chunks, one, wanted=in_block(3), threads=1).seen
    assert seen == {name for name, _ in every.rows if block_of(name) == 3}
    for key, rows in one.rows.items():
        np.testing.assert_array_equal(np.concatenate(rows), np.concatenate(every.rows[key]))


def test_products_of_one_input_get_one_object(kjv: Path) -> None:
    """So that an observer squares it once. A single wanted weight gets new rows every time, whatever their address."""
    taken: list[tuple[str, int]] = []
    held: list[object] = []

    class Watch:
        def take(self, name: str, rows: products.Floats, expert: int | None) -> None:
            held.append(rows)
            taken.append((name, id(rows)))

    observe(kjv, texts.drawn(kjv, 64, 1).chunks, Watch(), threads=1)
    shared = {name: rows for name, rows in taken}
    assert len({shared[f"blk.0.attn_{part}.weight"] for part in "qkv"}) == 1
    assert shared["blk.0.ffn_gate.weight"] == shared["blk.0.ffn_up.weight"] != shared["blk.0.ffn_down.weight"]
    alone = Inputs()
    observe(kjv, texts.drawn(kjv, 200, 1).chunks, alone, wanted="blk.0.attn_q.weight".__eq__, threads=1)
    parts = alone.rows["blk.0.attn_q.weight", None]
    assert sum(map(len, parts)) == 200 and len(parts) > 1
    assert not any(np.array_equal(one[:8], other[:8]) for one, other in pairwise(parts))


def test_errors_and_stops_come_through(kjv: Path) -> None:
    """ctypes would print what is raised in a callback, and go on."""
    chunks = texts.drawn(kjv, 32, 2).chunks

    class Failing:
        def take(self, name: str, rows: products.Floats, expert: int | None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        observe(kjv, chunks, Failing(), threads=1)
    told: list[Progress] = []
    with pytest.raises(Cancelled):
        observe(kjv, chunks, Inputs(), threads=1, progress=lambda now: bool(told.append(now)))
    assert [(now.done, now.total) for now in told] == [(32, 64)]
    with pytest.raises(UsageError, match="was made for texts of"):
        observe(kjv, texts.drawn(kjv, 5000, 1).chunks, Inputs(), threads=1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent to one's own process")
def test_ctrl_c_while_llama_cpp_computes(kjv: Path) -> None:
    """A signal comes while no line of Python runs; in the callback, what its handler raises would be dropped."""
    chunks, seen = texts.drawn(kjv, 128, 40).chunks, 0

    class Signalling:
        def take(self, name: str, rows: products.Floats, expert: int | None) -> None:
            nonlocal seen
            seen += 1
            if seen == 3:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        observe(kjv, chunks, Signalling(), threads=1)
    assert seen < 40 * 42


def test_another_layout_of_tensors_is_refused(kjv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that moves the fields is noticed before anything is read by them."""
    fields = dict(products._Tensor._fields_)
    moved = type(
        "Moved", (products.ctypes.Structure,), {"_fields_": [("new", products.ctypes.c_int64), *fields.items()]}
    )
    monkeypatch.setattr(products, "_Tensor", moved)
    with pytest.raises(UnsupportedFeature, match="laid out in another way"):
        observe(kjv, texts.drawn(kjv, 32, 1).chunks, Inputs(), threads=1)


def test_a_folder_is_run_as_a_file_that_goes_away(tmp_path: Path) -> None:
    with runnable(STORIES, folder=tmp_path, dtype="q8_0") as path:
        with converter.open_checkpoint(path) as checkpoint:
            assert checkpoint.tensors["blk.0.ffn_gate.weight"].info.dtype.name == "Q8_0"
        with runnable(path) as again:
            assert again == path
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------- texts


def test_a_text_is_cut_as_llama_imatrix_cuts_it(kjv: Path) -> None:
    tokenizer = converter.runtimes.llama_cpp.tokenizer(kjv, special=False)
    assert tokenizer is not None
    ids = tokenizer.encode(HELD_OUT.read_text("utf-8"))
    text = texts.from_file(kjv, HELD_OUT, 100)
    assert len(text.chunks) == len(ids) // 100 and text.tokens == len(text.chunks) * 100
    for number, chunk in enumerate(text.chunks):
        assert list(chunk) == [tokenizer.bos, *ids[number * 100 + 1 : number * 100 + 100]]
    assert texts.from_file(kjv, HELD_OUT, 100, 3).chunks == text.chunks[:3]
    assert text.name == "kjv-heldout.txt" and len(text.sha256) == 64


def test_lots_and_own_text_are_the_same_every_time(kjv: Path) -> None:
    assert texts.drawn(kjv, 64, 3) == texts.drawn(kjv, 64, 3) != texts.drawn(kjv, 64, 3, seed=1)
    own = texts.written(kjv, 64, 3, threads=1)
    assert own == texts.written(kjv, 64, 3, threads=1)
    assert len({tuple(chunk) for chunk in own.chunks}) == 3
    with LlamaCpp(kjv, 64, 1) as runtime:
        hidden = set(np.flatnonzero(runtime.controls()).tolist())
    assert hidden
    for text in (own, texts.drawn(kjv, 64, 3)):
        assert all(chunk[0] in hidden and not hidden & set(chunk[1:]) for chunk in text.chunks)


def test_own_text_is_what_the_model_finds_likely(kjv: Path) -> None:
    """Its loss is that of text it was made for, far from that of lots."""
    losses = {}
    for name, text in (("own", texts.written(kjv, 64, 4, threads=1)), ("random", texts.drawn(kjv, 64, 4))):
        total = []
        with LlamaCpp(kjv, 64, 1) as runtime:
            for chunk in text.chunks:
                logits = runtime.logits(chunk, 0).astype(np.float64)
                logits -= logits.max(axis=1, keepdims=True)
                logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
                total.append(-logits[np.arange(63), chunk[1:]].mean())
        losses[name] = float(np.mean(total))
    assert losses["own"] < 5 < 9 < losses["random"]


def test_what_no_text_can_be_made_of(kjv: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("In the beginning")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 99)
    with pytest.raises(UsageError, match="fill no chunk of 512; take a longer text"):
        texts.from_file(kjv, tmp_path / "short.txt")
    with pytest.raises(UsageError, match="is not UTF-8"):
        texts.from_file(kjv, tmp_path / "latin.txt")
    with pytest.raises(UsageError, match="8 tokens are too short: products are looked at from 16 on"):
        texts.drawn(kjv, 8)
