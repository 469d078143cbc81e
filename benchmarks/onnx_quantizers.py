"""Graphs of the trained fixture in every quantization of ours, and by the tools of onnxruntime of our F32 graph.

    python benchmarks/onnx_quantizers.py [--markdown] [NAME ...]

Each is made in a process of its own, whose time and peak memory are those of the whole: ours of the folder, the tools'
of our graph in F32; those of 4 bits need onnx-ir. Perplexity is of 12 windows of 255 tokens that the model has not
seen, by ONNX Runtime on one thread, which is also what tokens per second are of: a prompt of 255, and one by one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "fixtures" / "kjv-llama"
TEXT = ROOT / "fixtures" / "kjv-heldout.txt"
WINDOWS, WINDOW, CALIBRATION = 12, 255, 4


# ------------------------------------------------------------------------------------------------------ making


def ours(**asked: Any) -> Callable[[Path, Path], None]:
    """Of the model's folder, in one step."""

    def make(_: Path, target: Path) -> None:
        import converter

        if asked.get("quant") == "int8-static":  # a part of the text that is not scored, here and below
            text = target.with_suffix(".txt")
            text.write_text(TEXT.read_text()[-CALIBRATION * 1000 :])
            asked["calibration"] = text
        converter.convert(MODEL, target, converter.Request(**asked))

    return make


def dynamic(graph: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        graph, target, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"],
        use_external_data_format=True,
    )  # fmt: skip


def static(graph: Path, target: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Texts(CalibrationDataReader):
        def __init__(self) -> None:
            session = opened(graph)
            self.feeds = iter([feeds(session, window) for window in windows(CALIBRATION, WINDOWS)])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    quantize_static(
        graph, target, Texts(), quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=["MatMul"],
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, use_external_data_format=True,
    )  # fmt: skip


def four_bits(kind: str) -> Callable[[Path, Path], None]:
    def make(graph: Path, target: Path) -> None:
        import onnx
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits

        configs: dict[str, Any] = {
            "default": lambda: None,
            "RTN": lambda: nbits.RTNWeightOnlyQuantConfig(),
            "HQQ": lambda: nbits.HQQWeightOnlyQuantConfig(block_size=32),
        }
        config = configs[kind]()
        quantizer = nbits.MatMulNBitsQuantizer(
            onnx.load(graph), block_size=32, is_symmetric=False, accuracy_level=4, algo_config=config
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), use_external_data_format=True)

    return make


def half(graph: Path, target: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(graph), keep_io_types=True), target)


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "f32": ours(), "f16": ours(dtype="f16"), "int8": ours(quant="int8"),
    "int8-static": ours(quant="int8-static"),
    "q8_0": ours(quant="q8_0"), "q4_0": ours(quant="q4_0"), "q4_k_m": ours(quant="q4_k_m"),
    "onnxruntime float16": half, "onnxruntime dynamic": dynamic, "onnxruntime static": static,
    "onnxruntime 4 bits": four_bits("default"), "onnxruntime 4 bits RTN": four_bits("RTN"),
    "onnxruntime 4 bits HQQ": four_bits("HQQ"),
}  # fmt: skip


# --------------------------------------------------------------------------------------------------- measuring


def windows(count: int, first: int = 0) -> Iterator[list[int]]:
    """Windows of the text, from the first-th on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = tokenizer.encode(TEXT.read_text(), add_special_tokens=False)
    for start in range(first * WINDOW, (first + count) * WINDOW, WINDOW):
        yield [tokenizer.bos_token_id, *ids[start : start + WINDOW]]


def opened(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds(session: Any, ids: list[int], past: dict[str, Any] | None = None, at: int = 0) -> dict[str, Any]:
    made: dict[str, Any] = {
        "input_ids": np.array([ids]), "attention_mask": np.ones((1, at + len(ids)), np.int64),
        "position_ids": np.arange(at, at + len(ids))[None],
    }  # fmt: skip
    for each in session.get_inputs():
        if each.name.startswith("past_key_values"):
            kind = np.float16 if "16" in each.type else np.float32
            own = (past or {}).get(each.name.replace("past_key_values", "present"))
            made[each.name] = np.zeros((1, each.shape[1], 0, each.shape[3]), kind) if own is None else own
    return made


def outputs(session: Any, feed: dict[str, Any]) -> dict[str, Any]:
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, feed), strict=True))


def perplexity(session: Any) -> float:
    losses = []
    for window in windows(WINDOWS):
        logits = outputs(session, feeds(session, window))["logits"][0, :-1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        targets = window[1:]
        losses.append(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(targets)), targets])
    return math.exp(float(np.mean(losses)))


def speeds(session: Any) -> tuple[float, float]:
    """Tokens per second of a prompt, and of tokens one by one behind it; the best of five."""
    ids = next(windows(1))[:WINDOW]
    prompt, single = [], []
    for _ in range(5):
        start = time.perf_counter()
        past = outputs(session, feeds(session, ids))
        prompt.append(len(ids) / (time.perf_counter() - start))
        start = time.perf_counter()
        for at in range(32):
            past = outputs(session, feeds(session, [ids[at]], past, len(ids) + at))
        single.append(32 / (time.perf_counter() - start))
    return max(prompt), max(single)


def measured(name: str, graph: Path, target: Path) -> dict[str, float]:
    """Made in another process, and asked in this one."""
    command = [sys.executable, __file__, "--make", name, str(graph), str(target)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    done = json.loads(said[said.rindex("{") :])  # behind what tools tell of their progress
    nbytes = sum(file.stat().st_size for file in target.parent.glob(f"{target.name}*"))
    session = opened(target)
    prefill, decode = speeds(session)
    return {**done, "MB": nbytes / 1e6, "perplexity": perplexity(session), "prefill": prefill, "decode": decode}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="a table for docs/onnx.md")
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    if args.make:
        name, graph, target = args.make
        start = time.perf_counter()
        MAKERS[name](Path(graph), Path(target))
        seconds = time.perf_counter() - start
        status = Path("/proc/self/status").read_text()
        print(json.dumps({"seconds": seconds, "peak": int(status.split("VmHWM:")[1].split()[0]) / 1024}))
        return
    line = "| {} | {:.1f} s | {:.0f} MB | {:.1f} MB | {:.3f} | {:.0f} | {:.0f} |"
    line = line if args.markdown else "{:<24} {:>6.1f} s {:>5.0f} MB {:>6.1f} MB {:>8.3f} {:>7.0f} {:>6.0f}"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.onnx"
        MAKERS["f32"](MODEL, graph)
        for number, name in enumerate(args.names or MAKERS):
            found = measured(name, graph, Path(folder) / f"{number}.onnx")
            values = (found[key] for key in ("seconds", "peak", "MB", "perplexity", "prefill", "decode"))
            print(line.format(name, *values), flush=True)


if __name__ == "__main__":
    main()
