"""A Llama of 1.1 B as an ONNX graph with a cache: our writer, torch's exporter, optimum, mobius and GenAI's builder.

    python benchmarks/onnx_exporters.py [--markdown] [--work DIR] [--model FOLDER] [NAME ...]

All write F32, the one type that all of them have without a GPU, of the same BF16 folder (see `whole_job.make_model`).
Each runs in a process of its own, of an environment that has it (`make exporters` makes both: optimum wants
transformers 4, the others 5), and is ended after 15 minutes or at 14 GB. Told are its seconds (ours end when all is on
the disk), those of processors, the most resident memory of it and its children together, bytes of the graph without
weights, nodes, and, by ONNX Runtime on one thread in an environment that is the same for all, tokens per second of its
processor of a prompt of 64 and one by one behind it, the best of rounds that take turns with the first graph, and in
brackets as shares of that one's; how far its logits are from that one's, of the largest; and the machine's load when it
began. A graph has 4.4 GB, and two of them run beside each other. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = {"env4": ROOT / "build/clients/venv/bin/python", "env5": ROOT / "build/exporters/venv/bin/python"}
SECONDS, NBYTES = 900, 14 << 30
PROMPT, STEPS, ROUNDS = 64, 8, 4


# ------------------------------------------------------------------------------------- making, in other environments


def cache_shape(model: Path, batch: int, past: int) -> tuple[int, ...]:
    """Of the keys of a block of a Llama."""
    config = json.loads((model / "config.json").read_text())
    width = config["hidden_size"] // config["num_attention_heads"]
    return batch, config["num_key_value_heads"], past, width


def dynamo(folder: str, out: str) -> None:
    """torch's exporter of a module around transformers' model, with its optimizer, as its users write it."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    blocks = range(model.config.num_hidden_layers)

    class WithCache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, *given: Any) -> Any:
            ids, mask, positions, *past = given
            cache = transformers.DynamicCache()
            for block in blocks:
                cache.update(past[2 * block], past[2 * block + 1], block)
            made = self.inner(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
            return made.logits, *(each for layer in cache.layers for each in (layer.keys, layer.values))

    names = [f"{block}.{kind}" for block in blocks for kind in ("key", "value")]
    ids, past = torch.ones(2, 5, dtype=torch.int64), torch.zeros(cache_shape(Path(folder), 2, 3))
    given = (ids, torch.ones(2, 8, dtype=torch.int64), ids.clone(), *(past.clone() for _ in names))
    shapes = (tuple(dict.fromkeys((0, 2 if each.dim() == 4 else 1), torch.export.Dim.AUTO) for each in given),)
    with torch.no_grad():
        made = torch.onnx.export(
            WithCache(), given, dynamo=True, opset_version=23, dynamic_shapes=shapes,
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
        )  # fmt: skip
    made.save(f"{out}/model.onnx", external_data=True)


def optimum(folder: str, out: str) -> None:
    from optimum.exporters.onnx import main_export

    main_export(folder, out, task="text-generation-with-past", do_validation=False, dtype="fp32", opset=18)


@dataclass(frozen=True)
class Exporter:
    """What writes out/model.onnx of a folder: which environment's python runs what, and the packages that it has."""

    environment: str
    command: Callable[[str, str, str], list[str]]
    packages: tuple[str, ...] = ()


def ours(*flags: str) -> Exporter:
    return Exporter("", lambda python, model, out: [python, "-m", "converter", model, f"{out}/model.onnx", *flags])


def scripted(name: str) -> Callable[[str, str, str], list[str]]:
    return lambda python, model, out: [python, __file__, "--make", name, model, out]


EXPORTERS: dict[str, Exporter] = {
    "ours": ours("--dtype", "f32"),
    "dynamo": Exporter("env5", scripted("dynamo"), ("torch", "transformers", "onnxscript")),
    "optimum": Exporter("env4", scripted("optimum"), ("optimum-onnx", "transformers")),
    "mobius": Exporter(
        "env5",
        lambda python, model, out: [
            str(Path(python).with_name("mobius")), "build", "--config", model, out, "--dtype", "f32",
        ],
        ("mobius-onnx", "transformers"),
    ),
    "genai": Exporter(
        "env5",
        lambda python, model, out: [
            python, "-m", "onnxruntime_genai.models.builder", "-i", model, "-o", out, "-p", "fp32", "-e", "cpu",
            "-c", f"{out}/cache",
        ],
        ("onnxruntime-genai", "transformers"),
    ),
    "ours, F16": ours("--dtype", "f16"), "ours, Q4_0": ours("-q", "q4_0"),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------ watching


@dataclass(frozen=True)
class Cost:
    """Seconds, those of processors, and bytes of memory of a process and its children; why it did not end well."""

    seconds: float
    processors: float
    peak: int
    failure: str = ""


def watched(command: list[str], log: Path) -> Cost:
    """Run a command, ended where it needs too much."""
    started, peak, failure = time.monotonic(), 0, ""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, *resident(process.pid))
            if not failure and (peak > NBYTES or time.monotonic() - started > SECONDS):
                failure = f"more than {NBYTES >> 30} GiB" if peak > NBYTES else f"more than {SECONDS} s"
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02)
    _, status, usage = ended
    if status and not failure:
        failure = log.read_text(errors="replace").strip().rpartition("\n")[2][:200] or f"status {status}"
    return Cost(time.monotonic() - started, usage.ru_utime + usage.ru_stime, peak, failure)


def resident(session: int) -> Iterator[int]:
    """What processes of a session hold together now, and the most that each of them held."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) != session:
                continue
            lines = dict(line.split(":", 1) for line in (path / "status").read_text().splitlines())
        except (OSError, ValueError):  # it ended
            continue
        now, most = (int(lines.get(key, "0").split()[0]) << 10 for key in ("VmRSS", "VmHWM"))
        total += now
        yield most
    yield total


# ----------------------------------------------------------------------------------------------------- measuring


class Running:
    """A graph in ONNX Runtime, on one thread."""

    def __init__(self, graph: Path, model: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.model, self.best = model, [0.0, 0.0]

    def run(self, ids: Any, first: int, end: int, past: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        feeds: dict[str, Any] = {
            "input_ids": ids[:, first:end], "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(first, end)[None],
        }  # fmt: skip
        takes, gives = self.session.get_inputs(), [each.name for each in self.session.get_outputs()]
        for each in takes:
            if each.name.startswith("past"):
                empty = np.zeros(cache_shape(self.model, 1, 0), np.float16 if "float16" in each.type else np.float32)
                feeds[each.name] = past.get(each.name.replace("past_key_values", "present"), empty)
        return dict(zip(gives, self.session.run(None, {each.name: feeds[each.name] for each in takes}), strict=True))

    def round(self, ids: Any) -> Any:
        """The last logits of a prompt and of tokens one by one behind it, whose speeds are kept where they are best."""
        started = time.process_time()
        past = self.run(ids, 0, PROMPT, {})
        self.best[0] = max(self.best[0], PROMPT / (time.process_time() - started))
        started = time.process_time()
        for at in range(PROMPT, PROMPT + STEPS):
            past = self.run(ids, at, at + 1, past)
        self.best[1] = max(self.best[1], STEPS / (time.process_time() - started))
        return past["logits"].reshape(-1)


def measured(graph: Path, model: Path, first: Path) -> dict[str, Any]:
    """What a graph is, and how fast in turns with the first of all, in this process."""
    import numpy as np
    import onnx

    own = onnx.load(graph, load_external_data=False).graph
    inside = sum(len(each.raw_data) for each in own.initializer)
    ids = np.random.default_rng(0).integers(3, 500, (1, PROMPT + STEPS))
    these, those = Running(graph, model), Running(first, model)
    for _ in range(ROUNDS):
        found, want = (each.round(ids).astype(np.float32) for each in (these, those))
    far = float(np.abs(found - want).max() / np.abs(want).max())
    return {
        "graph": graph.stat().st_size - inside, "nodes": len(own.node), "speeds": these.best,
        "shares": [a / b for a, b in zip(these.best, those.best, strict=True)], "far": far,
    }  # fmt: skip


def versions(python: Path, packages: tuple[str, ...]) -> str:
    """What an environment has, by name and version."""
    code = "import sys, importlib.metadata as m; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def read_once(model: Path) -> None:
    """The model's weights, so that all find them in the system's cache."""
    with (model / "model.safetensors").open("rb") as file:
        while file.read(16 << 20):
            pass


def row(name: str, exporter: Exporter, python: Path, model: Path, work: Path) -> list[str]:
    """One exporter's figures as texts; of the graphs in `work` the first stays."""
    load, first = f"{os.getloadavg()[0]:.1f}", work / "first"
    read_once(model)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out, log = Path(folder) / "out", Path(folder) / "log"
        out.mkdir()
        cost = watched(exporter.command(str(python), str(model), str(out)), log)
        made = [f"{cost.seconds:.1f} s", f"{cost.processors:.1f} s", f"{cost.peak / 1e6:.0f} MB"]
        if cost.failure:
            return [name, *made, cost.failure, load]
        if not first.exists():
            out = out.rename(first)
        command = [sys.executable, __file__, "--measure", *map(str, (out / "model.onnx", model, first / "model.onnx"))]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode:
        return [name, *made, said.stderr.strip().rpartition("\n")[2][:200], load]
    found = json.loads(said.stdout.splitlines()[-1])
    speeds = [f"{own:.2f} ({share:.2f})" for own, share in zip(found["speeds"], found["shares"], strict=True)]
    return [name, *made, f"{found['graph'] / 1e6:.2f} MB", f"{found['nodes']}", *speeds, f"{found['far']:.1e}", load]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="a table for docs/onnx.md")
    parser.add_argument("--work", type=Path, help="where the model is, or is kept for another time")
    parser.add_argument("--model", type=Path, help="a folder in place of the model of 1.1 B")
    for name, path in ENVIRONMENTS.items():
        parser.add_argument(f"--{name}", type=Path, default=path, help=f"its python; {path} by default")
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {'; '.join(EXPORTERS)}; all by default")
    args = parser.parse_args()
    if args.make:
        maker, folder, out = args.make
        return {"dynamo": dynamo, "optimum": optimum}[maker](folder, out)
    if args.measure:
        return print(json.dumps(measured(*args.measure)))
    pythons = {"": Path(sys.executable), **{name: getattr(args, name) for name in ENVIRONMENTS}}
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        model = (args.model or work / "llama-1.1b").resolve()
        if not model.exists():
            code = "import sys, pathlib, whole_job as w; w.make_model(pathlib.Path(sys.argv[1]), '1.1b')"
            subprocess.run([sys.executable, "-c", code, str(model)], check=True, cwd=Path(__file__).parent)
        with tempfile.TemporaryDirectory(dir=work) as graphs:
            for name in args.names or EXPORTERS:
                exporter = EXPORTERS[name]
                python = pythons[exporter.environment]
                if not python.exists():
                    print(f"{name}: make exporters installs it")
                    continue
                found = row(name, exporter, python, model, Path(graphs))
                found.append(versions(python, exporter.packages))
                print(f"| {' | '.join(found)} |" if args.markdown else "  ".join(found), flush=True)
    return None


if __name__ == "__main__":
    main()
