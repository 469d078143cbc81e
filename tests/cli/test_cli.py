"""The command line: what it prints, where, and what it exits with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import models

import converter
from converter.cli import verbs
from converter.cli.main import main
from converter.storage.files import MappedFile
from converter.tensors.dtypes import DTYPES
from converter.text import human_bytes

STORIES = models.FIXTURES / "stories260K"
COMMANDS = tuple(name for name in verbs.names() if name != verbs.DEFAULT)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """`main` in this process, with what it changes put back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    shown = warnings.showwarning

    def run(*args: str | Path) -> Result:
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as end:  # argparse's --help and --version
            code = int(end.code or 0)
        return Result(code, *capsys.readouterr())

    yield run
    warnings.showwarning = shown
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are multiples of 256, so that nothing falls back."""
    return models.build_model("mistral-256", tmp_path_factory.mktemp("wide"))


def types(result: Result) -> dict[str, str]:
    return {tensor["name"]: tensor["type"] for tensor in result.json["tensors"]}


# -------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_explains_itself(command: str, cli: Cli) -> None:
    result = cli(*filter(None, [command]), "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: convert {command}".rstrip())
    assert "--json" in result.out


def test_no_arguments_is_help(cli: Cli) -> None:
    assert cli() == cli("--help")


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"model-converter {converter.__version__}\n"


def test_help_is_quick() -> None:
    """A tripwire, not a benchmark: 0.15 s is the bar on an idle machine, this allows for a busy one."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "converter", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.0


# --------------------------------------------------------------------------------------------------- plan


def test_plan_json(cli: Cli, tmp_path: Path) -> None:
    result = cli("plan", STORIES, tmp_path / "out.gguf", "--quant", "q4_k_m", "--json")
    assert (result.code, result.err) == (0, "")
    plan = result.json
    keys = {"name", "sources", "shape", "source_type", "type", "bytes", "rule"}
    assert all(tensor.keys() >= keys for tensor in plan["tensors"])
    for tensor in plan["tensors"]:
        assert tensor["bytes"] == DTYPES[tensor["type"]].nbytes(tuple(tensor["shape"]))
        assert tensor["sources"] and all(isinstance(name, str) for name in tensor["sources"])
    by_name = {tensor["name"]: tensor for tensor in plan["tensors"]}
    assert by_name["blk.0.attn_q.weight"]["sources"] == ["model.layers.0.self_attn.q_proj.weight"]
    assert by_name["blk.0.attn_q.weight"]["shape"] == [64, 64]
    assert by_name["blk.0.attn_q.weight"]["source_type"] == "F32"
    assert plan["parameters"] == sum(int(np.prod(tensor["shape"])) for tensor in plan["tensors"]) == 260_032
    stored = sum(tensor["bytes"] for tensor in plan["tensors"])
    assert plan["bits_per_weight"] == pytest.approx(8 * stored / plan["parameters"], abs=1e-4)
    assert plan["total_bytes"] == sum(file["bytes"] for file in plan["files"]) > stored
    fallbacks = [event for event in plan["events"] if event["kind"] == "TypeFallback"]
    assert fallbacks and all(event["loss"] and event["message"] and event["wanted"] for event in fallbacks)
    assert not list(tmp_path.iterdir())


def test_plan_says_what_convert_then_writes(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    planned = cli("plan", STORIES, target, "-q", "q5_k_m", "--json").json
    done = cli(STORIES, target, "-q", "q5_k_m", "--json").json
    assert (planned.pop("verb"), done.pop("verb")) == ("plan", "convert")
    assert target.stat().st_size == planned["total_bytes"]
    assert done.pop("seconds") >= 0
    assert planned.pop("preflight")["fits"] is True  # what is only told before
    assert done == planned
    with converter.open_checkpoint(target) as checkpoint:
        assert [
            (tensor.name, list(tensor.info.shape), tensor.info.dtype.name, tensor.info.nbytes)
            for tensor in checkpoint.tensors.values()
        ] == [(tensor["name"], tensor["shape"], tensor["type"], tensor["bytes"]) for tensor in planned["tensors"]]


def test_plan_as_text(cli: Cli, tmp_path: Path) -> None:
    result = cli("plan", STORIES, tmp_path / "out.gguf", "-q", "q8_0")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["tensor", "shape", "from", "to", "bytes", "rule"]
    assert any(re.match(r"blk\.0\.attn_q\.weight +64x64 +F32 +Q8_0 +4,352 +base type of Q8_0", line) for line in lines)
    assert "260,032 parameters" in result.out and "bits per weight" in result.out
    assert re.search(r"needs \S+ kB of disk \(.* free\) and about \d+ MB of memory \(.* free\)", result.out)


def test_plan_reads_no_tensor_byte(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read of the weights goes through the map; none of them may reach beyond the header."""
    asked: list[tuple[str, int]] = []
    view = MappedFile.view

    def spy(self: MappedFile, offset: int, nbytes: int, what: str) -> Any:
        asked.append((self.path.name, offset + nbytes))
        return view(self, offset, nbytes, what)

    monkeypatch.setattr(MappedFile, "view", spy)
    assert cli("plan", STORIES, tmp_path / "out.gguf", "-q", "q4_k_m", "--json").code == 0
    header = 8 + int.from_bytes((STORIES / "model.safetensors").read_bytes()[:8], "little")
    assert asked and {name for name, _ in asked} == {"model.safetensors"}
    assert max(end for _, end in asked) == header


def test_plan_into_a_folder_names_the_file(cli: Cli, tmp_path: Path) -> None:
    result = cli("plan", STORIES, tmp_path, "-q", "q4_k_m", "--json")
    (file,) = result.json["files"]
    name = Path(file["path"]).name
    assert name.startswith("stories260K") and name.endswith("-Q4_K_M.gguf")
    fallbacks = [event["tensor"] for event in result.json["events"] if event["kind"] == "TypeFallback"]
    assert len(fallbacks) == len(set(fallbacks))


# ---------------------------------------------------------------------------------------------- options


def test_tensor_types_from_the_command_line(cli: Cli, wide: Path, tmp_path: Path) -> None:
    plain = types(cli("plan", wide, tmp_path / "o.gguf", "-q", "q4_k_m", "--json"))
    assert plain["blk.1.attn_q.weight"] == "Q4_K" and plain["output.weight"] == "Q6_K"
    chosen = types(cli(
        "plan", wide, tmp_path / "o.gguf", "-q", "q4_k_m", "--json", "--tensor-type", r"blk\.1\.attn_q=q8_0",
        "--tensor-type", "attn_q=Q5_K", "--output-type", "q5_1", "--embedding-type", "f16",
    ))  # fmt: skip
    assert chosen["blk.1.attn_q.weight"] == "Q8_0"
    assert chosen["blk.0.attn_q.weight"] == chosen["blk.7.attn_q.weight"] == "Q5_K"
    assert chosen["output.weight"] == "Q5_1"
    assert chosen["token_embd.weight"] == "F16"
    others = [name for name in plain if "attn_q" not in name and name not in ("output.weight", "token_embd.weight")]
    assert {name: chosen[name] for name in others} == {name: plain[name] for name in others}


def test_a_chosen_type_is_in_the_file(cli: Cli, wide: Path, tmp_path: Path) -> None:
    result = cli(wide, tmp_path / "o.gguf", "-q", "q4_0", "--tensor-type", "ffn_up=q2_k", "--pure", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    with converter.open_checkpoint(tmp_path / "o.gguf") as checkpoint:
        found = {name: tensor.info.dtype.name for name, tensor in checkpoint.tensors.items() if name.endswith("weight")}
    assert {kind for name, kind in found.items() if "ffn_up" in name} == {"Q2_K"}
    assert found["output.weight"] == found["blk.0.attn_v.weight"] == "Q4_0"


def test_leave_output(cli: Cli, wide: Path, tmp_path: Path) -> None:
    found = types(cli("plan", wide, tmp_path / "o.gguf", "-q", "q4_0", "--leave-output", "--json"))
    assert found["output.weight"] == "BF16" and found["token_embd.weight"] == "Q4_0"


def test_via_rounds_what_is_kept(cli: Cli, wide: Path, tmp_path: Path) -> None:
    found = types(cli("plan", wide, tmp_path / "o.gguf", "--via", "f16", "--json"))
    assert found["blk.0.attn_q.weight"] == "F16" and found["blk.0.attn_norm.weight"] == "F32"


def test_metadata_options(cli: Cli, tmp_path: Path) -> None:
    assert cli(STORIES, tmp_path / "o.gguf", "--name", "A Name", "--no-tokenizer", "--quiet").code == 0
    with converter.open_checkpoint(tmp_path / "o.gguf") as checkpoint:
        assert checkpoint.config["general.name"].value == "A Name"
        assert not [key for key in checkpoint.config if key.startswith("tokenizer.")]


def test_requantizing_asks_first(cli: Cli, tmp_path: Path) -> None:
    assert cli(STORIES, tmp_path / "a.gguf", "-q", "q8_0", "--quiet").code == 0
    refused = cli(tmp_path / "a.gguf", tmp_path / "b.gguf", "-q", "q4_0")
    assert refused.code == 30 and "--allow-requantize" in refused.err and not (tmp_path / "b.gguf").exists()
    allowed = cli(tmp_path / "a.gguf", tmp_path / "b.gguf", "-q", "q4_0", "--allow-requantize")
    assert allowed.code == 0 and "decoded and encoded again" in allowed.err


def test_tensors_only_keeps_names(cli: Cli, tmp_path: Path) -> None:
    found = types(cli("plan", STORIES, tmp_path / "o.gguf", "--tensors-only", "-q", "f16", "--json"))
    assert found["model.layers.0.self_attn.q_proj.weight"] == "F16"


def test_config_from_another_folder(cli: Cli, tmp_path: Path) -> None:
    shutil.copy(STORIES / "model.safetensors", tmp_path / "bare.safetensors")
    without = cli(tmp_path / "bare.safetensors", tmp_path / "o.gguf")
    assert without.code == 20 and "--config DIR" in without.err
    assert cli(tmp_path / "bare.safetensors", tmp_path / "o.gguf", "--config", STORIES, "--quiet").code == 0
    assert cli(STORIES, tmp_path / "p.gguf", "--quiet").code == 0
    with converter.open_checkpoint(tmp_path / "o.gguf") as one, converter.open_checkpoint(tmp_path / "p.gguf") as other:
        assert one.tensors.keys() == other.tensors.keys()
        assert one.config["tokenizer.ggml.tokens"] == other.config["tokenizer.ggml.tokens"]


def test_formats_by_name(cli: Cli, tmp_path: Path) -> None:
    assert cli(STORIES, tmp_path / "model.bin", "--to", "gguf", "--quiet").code == 0
    shutil.move(tmp_path / "model.bin", tmp_path / "model.txt")
    result = cli("plan", tmp_path / "model.txt", tmp_path / "o.safetensors", "--from", "gguf", "--json")
    assert "model.layers.0.self_attn.q_proj.weight" in types(result)


@pytest.mark.parametrize(
    ("options", "count"),
    [(("--split-max-tensors", "20"), 3), (("--split-max-size", "200K"), None), (("--split-max-tensors", "999"), 1)],
)
def test_split(options: tuple[str, str], count: int | None, cli: Cli, tmp_path: Path) -> None:
    assert cli(STORIES, tmp_path / "whole.gguf", "-q", "f16", "--quiet").code == 0
    result = cli(STORIES, tmp_path / "out.gguf", "-q", "f16", *options, "--json")
    assert result.code == 0
    files = [Path(file["path"]) for file in result.json["files"]]
    assert [file.stat().st_size for file in files] == [file["bytes"] for file in result.json["files"]]
    if count == 1:
        assert files == [tmp_path / "out.gguf"]
    else:
        assert len(files) == (count or len(files)) > 1
        assert [file.name for file in files] == [f"out-{i + 1:05d}-of-{len(files):05d}.gguf" for i in range(len(files))]
    with converter.open_checkpoint(files[-1]) as parts, converter.open_checkpoint(tmp_path / "whole.gguf") as whole:
        assert list(parts.tensors) == list(whole.tensors)
        assert dict(parts.config) == dict(whole.config)
        for name, tensor in parts.tensors.items():
            assert np.array_equal(tensor.array(), whole.tensors[name].array())


# --------------------------------------------------------------------------------------------- messages


def test_convert_prints_a_result_and_each_event_once(cli: Cli, tmp_path: Path) -> None:
    result = cli(STORIES, tmp_path / "out.gguf", "-q", "q4_k_m")
    assert result.code == 0
    first, second = result.out.splitlines()
    size = human_bytes((tmp_path / "out.gguf").stat().st_size)
    assert re.fullmatch(rf".*out\.gguf: {re.escape(size)}, 8\.\d\d bits per weight, \d+\.\d\d s", first)
    assert re.match(r"47 tensors \(\d+ \w+, ", second)
    lines = result.err.splitlines()
    assert len(lines) == len(set(lines))
    assert re.match(r"warning: rows of \d+ tensors do not fit the wanted type: \d+ \w+ for \w+, ", lines[-2])
    assert re.search(r"out\.gguf: 8\.\d\d bits per weight instead of 5\.\d\d: \d+ of 47 tensors do not", lines[-1])
    quiet = cli(STORIES, tmp_path / "out.gguf", "-q", "q4_k_m", "--force", "--quiet")
    assert (quiet.out, quiet.err) == ("", f"{lines[-1]}\n"), "the size is told whatever is wanted quiet"


def test_json_goes_alone(cli: Cli, tmp_path: Path) -> None:
    result = cli(STORIES, tmp_path / "out.gguf", "-q", "q4_k_m", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json["seconds"] >= 0
    events = [event["message"] for event in result.json["events"]]
    assert len(events) == len(set(events)) > 5


def test_strict_refuses_a_loss(cli: Cli, wide: Path, tmp_path: Path) -> None:
    refused = cli(STORIES, tmp_path / "out.gguf", "-q", "q4_k_m", "--strict")
    assert refused.code == 40
    assert "refused under --strict" in refused.err and "Q4_K" in refused.err
    assert not list(tmp_path.iterdir())
    assert cli(wide, tmp_path / "out.gguf", "-q", "q4_k_m", "--strict", "--quiet").code == 0


def test_no_fallback(cli: Cli, tmp_path: Path) -> None:
    refused = cli(STORIES, tmp_path / "out.gguf", "-q", "q4_k_m", "--no-fallback")
    assert refused.code == 30 and not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("{stories}", "-"), 2, "cannot go to a pipe"),
        (("{stories}", "{tmp}/o.gguf", "--frobnicate"), 2, "--frobnicate"),
        (("{stories}", "{tmp}/o.gguf", "-q", "q9_z"), 2, "q9_z"),
        (("{stories}", "{tmp}/o.gguf", "-q", "q4_0", "--tensor-type", "nothing=q8_0"), 2, "nothing"),
        (("{stories}", "{tmp}/o.gguf", "-q", "q4_0", "--tensor-type", "attn_q"), 2, "PATTERN=TYPE"),
        (("{stories}", "{tmp}/o.gguf", "-q", "q4_0", "--tensor-type", "(=q8_0"), 2, "("),
        (("{stories}", "{tmp}/o.gguf", "-q", "q4_0", "--output-type", "q9_z"), 2, "q9_z"),
        (("{stories}", "{tmp}/o.gguf", "--threads", "0"), 2, "positive"),
        (("{stories}", "{tmp}/o.gguf", "--split-max-size", "lots"), 2, "2G"),
        (("{stories}", "{tmp}/o.gguf", "--dtype", "f16"), 2, "--quant f16"),
        (("{stories}", "{tmp}/o.safetensors", "-q", "q8_0"), 2, "--dtype"),
        (("{stories}", "{tmp}/o.safetensors", "--dtype", "q8_0"), 2, "plain"),
        (("{stories}", "{tmp}/o.xyz"), 10, ".gguf"),
        (("{stories}", "{stories}/config.json/o.gguf"), 50, "is a file, not a folder"),
        (("{tmp}/absent", "{tmp}/o.gguf"), 50, "absent"),
        (("{stories}", "{tmp}/o.gguf", "--from", "nonsense"), 10, "nonsense"),
        (("{stories}", "{tmp}/o.gguf", "--to", "nonsense"), 10, "nonsense"),
        (("{stories}", "{tmp}/o.gguf", "--arch", "nonsense"), 20, "nonsense"),
        (("{stories}", "{tmp}/o.gguf", "--config", "{tmp}"), 2, "config.json"),
        (("{stories}/model.safetensors", "{stories}/model.safetensors", "--force"), 51, "same file"),
        (("completion", "tcsh"), 2, "tcsh"),
        (("inspect", "{tmp}/absent"), 50, "absent"),
    ],
)
def test_errors(args: tuple[str, ...], code: int, said: str, cli: Cli, tmp_path: Path) -> None:
    """One to three lines on stderr, nothing on stdout, the right exit code, nothing written."""
    result = cli(*(arg.format(stories=STORIES, tmp=tmp_path) for arg in args))
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("convert: ") and said in result.err
    assert 1 <= len(result.err.splitlines()) <= 3
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_kept_without_force(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_text("precious")
    refused = cli(STORIES, target)
    assert refused.code == 53 and "--force" in refused.err
    assert target.read_text() == "precious"
    assert cli(STORIES, target, "--force", "--quiet").code == 0
    assert target.read_bytes()[:4] == b"GGUF"


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "converter", str(tmp_path / "absent"), str(tmp_path / "o.gguf"), "--debug"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 50, "the code is that of the error"
    assert "Traceback" in result.stderr and "OutputError" in result.stderr


def test_abbreviated_options_are_refused(cli: Cli, tmp_path: Path) -> None:
    """An option added later must not change what an old script means."""
    assert cli(STORIES, tmp_path / "o.gguf", "--quan", "q8_0").code == 2


# --------------------------------------------------------------------------------------------- progress


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("options", "drawn"), [((), True), (("--quiet",), False), (("--json",), False)])
def test_progress_is_drawn_on_a_terminal_only(
    options: tuple[str, ...], drawn: bool, wide: Path, tmp_path: Path
) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "converter", str(wide), str(tmp_path / "o.gguf"), "-q", "q4_0", *options]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # Linux: the other side was closed
        pass
    os.close(ours)
    assert process.wait() == 0
    assert (b"\x1b[" in seen) is drawn
    if drawn:
        assert b"B/s" in seen and b"MB" in seen


def test_no_progress_in_a_pipe(wide: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "converter", str(wide), str(tmp_path / "o.gguf"), "-q", "q4_0"]
    result = subprocess.run(command, capture_output=True, check=True)
    assert b"\x1b" not in result.stderr + result.stdout


# ---------------------------------------------------------------------------------------------- listings


def test_formats(cli: Cli) -> None:
    rows = {row["format"]: row for row in cli("formats", "--json").json["formats"]}
    assert rows["gguf"]["read"] and rows["gguf"]["write"] and rows["gguf"]["quantized"]
    assert rows["safetensors"]["read"] and rows["safetensors"]["write"] and not rows["safetensors"]["quantized"]
    assert rows["hf"]["read"]
    text = cli("formats").out.splitlines()
    assert len(text) == len(rows) + 1 and text[0].startswith("format")


def test_quants(cli: Cli) -> None:
    rows = {row["quant"]: row for row in cli("quants", "--json").json["quants"]}
    assert rows["Q4_K_M"]["file_type"] == 15 and rows["Q4_K_M"]["bits"] == 4.5 and rows["Q4_K_M"]["mixture"]
    assert rows["F16"]["bits"] == 16
    assert rows["IQ2_XXS"]["imatrix"] and not rows["Q8_0"]["imatrix"]
    assert "Q4_K_M" in cli("quants").out


def test_architectures(cli: Cli) -> None:
    rows = {row["architecture"]: row for row in cli("architectures", "--json").json["architectures"]}
    assert {"llama", "qwen2", "qwen3", "qwen3moe"} <= rows.keys()
    assert {"LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"} <= set(rows["llama"]["classes"])
    assert "MixtralForCausalLM" in cli("architectures").out


def test_inspect(cli: Cli, tmp_path: Path) -> None:
    assert cli(STORIES, tmp_path / "m.gguf", "-q", "q8_0", "--quiet").code == 0
    for source in (STORIES, tmp_path / "m.gguf"):
        assert cli("inspect", source).code == 0
        assert isinstance(cli("inspect", source, "--json").json, dict)
    text = cli("inspect", tmp_path / "m.gguf").out
    assert "general.architecture" in text and "blk.0.attn_q.weight" in text


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_999, "1.00 MB"), (1_234_567, "1.23 MB"), (4.9e10, "49.0 GB")],
)
def test_human_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


# ------------------------------------------------------------------------------------- a report on stdout


@pytest.mark.parametrize("verb", ["verify", "check", "diff", "compare", "batch"])
def test_a_report_on_stdout(verb: str, cli: Cli, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    assert cli(STORIES, model, "--quiet").code == 0
    argv = {
        "verify": (STORIES, model), "check": (model,), "diff": (model, model), "compare": (STORIES, "-q", "q8_0"),
        "batch": (STORIES, "--out", tmp_path / "b.gguf"),
    }  # fmt: skip
    result = cli(verb, *argv[verb], "--report", "-")
    assert (result.code, result.out.splitlines()[0]) == (0, f"<!-- convert {verb} -->")
    assert cli(verb, *argv[verb], "--report=-.txt", "--force" if verb == "batch" else "--quiet").out.startswith(
        f"# convert {verb}\n"
    )
    for more in ("--json", "--report=-.txt"):
        refused = cli(verb, *argv[verb], "--report", "-", more)
        assert refused.code == 2 and "one report fits on stdout" in refused.err
    assert not list(tmp_path.glob("-*")), "no file is called so"


def test_a_report_on_stdout_of_what_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for verb, argv in (("verify", (STORIES, tmp_path / "m.gguf")), ("check", (tmp_path / "m.gguf",))):
        result = cli(verb, *argv, "--report", "-")
        assert result.code == 11 and result.out.startswith(f"<!-- convert {verb} -->\n## ") and "m.gguf" in result.out
