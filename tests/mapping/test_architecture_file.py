"""An architecture from a user's file: it maps as one of ours does, and what is wrong with it is said with the line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import builders
from support.families import NO_TOKENIZER, family_config, random_tensors, write

import converter
from converter import Request
from converter.architectures import architectures
from converter.errors import ArchitectureError, OutputError
from converter.events import ReadAs
from converter.formats.safetensors import open_safetensors
from converter.mapping.architecture_file import read_architecture
from converter.tensors.ops import At, Rope, Split

LIKE_LLAMA = """
gguf = "mine"
like = "llama"
tokenizer = "bpe"
without = ["rope_freqs.weight"]

[[class]]
name = "MineForCausalLM"
model_type = "mine"
defaults = { rms_norm_eps = 1e-6, rope_theta = 10000.0 }

[[hparam]]
name = "n_ctx"
config = ["context", "max_position_embeddings"]

[[hparam]]
name = "loops"
config = "num_loops"
gguf = "num_loops"
default = 1
always = true

[[tensor]]
hf = "model.layers.{block}.self_attn.qkv.weight"
gguf = ["blk.{block}.attn_q.weight", "blk.{block}.attn_k.weight", "blk.{block}.attn_v.weight"]
ops = [{ Split = [0, ["n_head", "n_head_kv", "n_head_kv"]] }, { At = [0, { Rope = ["n_head"] }] }]
shape = ["(n_head + 2 * n_head_kv) * head_dim", "n_embd"]
when = "loops > 1"
"""


def described(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    """Its tensors are llama's, its name and its own key are its own; and the way back is as for ours."""
    path = described(tmp_path, LIKE_LLAMA)
    config = family_config("llama", architectures=["MineForCausalLM"], model_type="mine", context=64)
    del config["rope_parameters"]
    tensors = random_tensors(family_config("llama"), "F32")
    folder = write(tmp_path / "m", config, tensors, "F32")
    request = NO_TOKENIZER.replace(arch=str(path))
    converter.convert(folder, tmp_path / "m.gguf", request)
    with converter.open_checkpoint(tmp_path / "m.gguf") as made:
        keys = {key: value.value for key, value in made.config.items() if hasattr(value, "value")}
        assert (keys["general.architecture"], keys["mine.num_loops"], keys["mine.context_length"]) == ("mine", 1, 64)
    plan = converter.convert(tmp_path / "m.gguf", tmp_path / "back.safetensors", request)
    assert plan.checkpoint.config["architectures"] == ["MineForCausalLM"]
    assert plan.checkpoint.config["context"] == 64 and plan.checkpoint.config["num_loops"] == 1
    assert stored(tmp_path / "back.safetensors") == stored(folder / "model.safetensors")


def stored(path: Path) -> dict[str, bytes]:
    with open_safetensors(path) as checkpoint:
        return {name: tensor.rows(0, tensor.info.n_rows).tobytes() for name, tensor in checkpoint.tensors.items()}


def test_it_says_what_ours_say(tmp_path: Path) -> None:
    """Nothing but `like`: the rows of the known one, under its name."""
    llama = architectures()["llama"]
    assert read_architecture(described(tmp_path, 'like = "llama"\n')) == llama


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("gguf = 'x'\nlike = 'lama'\n", 2, "there is no architecture 'lama'"),
        ("gguf = 'x'\nlayers = 3\nlike = 'llama'\n", 2, "there is no 'layers'"),
        ("like = 'llama'\ntokenizer = 'wordy'\n", 2, "there is no tokenizer 'wordy'"),
        ("like = 'llama'\n\n[[tensor]]\nhf = 'a'\ngguff = 'b'\n", 5, "a tensor has no 'gguff'"),
        ("like = 'llama'\n[[tensor]]\nhf = 'a'\ngguf = 'b'\nops = [{ Roap = [1] }]\n", 2, "there is no op 'Roap'"),
        ("like = 'llama'\n[[tensor]]\nhf = 'a'\ngguf = 'b'\nops = [{ Op = [] }]\n", 2, "there is no op 'Op'"),
        ("like = 'llama'\n[[tensor]]\nhf = 'a'\ngguf = 'b'\nops = ['Rope']\n", 2, "an op is written"),
        ("like = 'llama'\n[[tensor]]\nhf = 'a.w'\ngguf = 'b.w'\nshape = ['n_nothing']\n", 5, "no hparam n_nothing"),
        ("like = 'llama'\n[[hparam]]\nname = 'n_x'\ntype = 'u7'\n", 3, "there is no type u7"),
        ("like = 'llama'\nignore = 'x'\n", 2, "ignore is a list"),
        ("like = 'llama'\n[hparam]\nname = 'n'\n", 2, "hparam is a list"),
        ("[[class]]\nname = 'X'\nmodel_type = 'x'\n", None, "has a name"),
        ("gguf = 5\nlike = 'llama'\n", None, "has a name"),
        ("like = ['llama']\n", 1, "there is no architecture"),
        ("like = 'llama'\ntokenizer = ['bpe']\n", 2, "there is no tokenizer"),
        ("like = 'llama'\n[[class]]\nmodel_type = 'x'\n", None, "'name'"),
        ("like = 'llama'\n[[hparam]]\ntype = 'u32'\n", None, "is no name that expressions can have"),
        ("like = 'llama'\n[[tensor]]\nhf = 'a'\n", None, "goes somewhere"),
        ("like = 'llama'\n[[tensor]]\nhf = 'a'\ngguf = 5\n", None, "not iterable"),
        ("like = 'llama'\naliases = [5]\n", None, "not iterable"),
        ("like = 'llama'\nignore = [5]\n", None, "split"),
        ("gguf = 'x'\ngguf = 'y'\n", 2, "line 2"),
        ("gguf = " + "9" * 5000, None, "digits"),
        ("gguf = " + "[" * 5000, None, ""),
        ("gguf = 'x' # \xff\n", None, "utf-8"),
    ],
)
def test_what_is_wrong_is_said_with_the_line(text: str, line: int | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ArchitectureError) as caught:
        read_architecture(path)
    message = str(caught.value)
    assert message.startswith(f"{path}") and problem in message and len(message.splitlines()) <= 3
    assert line is None or f":{line}:" in message or f"line {line}" in message


def test_a_file_too_large(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="at most"):
        read_architecture(described(tmp_path, "#" * (1 << 20) + "\n"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"mine\.toml: No such file"):
        read_architecture(tmp_path / "mine.toml")


def test_the_nearest_is_named_and_not_recommended(tmp_path: Path) -> None:
    builders.llama_folder(tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    config |= {"architectures": ["NewForCausalLM"], "model_type": "new"}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    with pytest.raises(ArchitectureError) as caught:
        converter.plan(tmp_path / "m", tmp_path / "m.gguf")
    first, near, ways = str(caught.value).splitlines()
    assert "'NewForCausalLM'" in first and "--arch NAME or --arch-file FILE" in ways
    assert near.startswith("by its tensors' names nearest to ") and near.endswith(", but what it computes may differ")


def test_another_architecture_than_the_configs_own_is_said(tmp_path: Path) -> None:
    builders.llama_folder(tmp_path / "m")
    plan = converter.plan(tmp_path / "m", tmp_path / "m.gguf", Request(arch="qwen2", no_tokenizer=True))
    plan.checkpoint.close()
    (told,) = (event for event in plan.report.events if isinstance(event, ReadAs))
    assert (told.asked, told.own, told.loss) == ("qwen2", "llama", True)


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    """The page's own TOML is read, and its rows are what the page says they are."""
    page = (Path(__file__).parent.parent.parent / "docs/adding-an-architecture.md").read_text("utf-8")
    made = read_architecture(described(tmp_path, page.partition("```toml\n")[2].partition("```")[0]))
    assert (made.gguf, [hf.name for hf in made.hf]) == ("mine", ["MineForCausalLM"])
    rule = next(rule for rule in made.tensors if "model.layers.{block}.self_attn.qkv.weight" in rule.hf)
    assert rule.ops == (Split(0, ("n_head", "n_head_kv", "n_head_kv")), At(0, Rope("n_head")))
    assert all(rule.generator is None for rule in made.tensors)


def test_an_architecture_of_another_package(tmp_path: Path) -> None:
    """Found by its entry point where none of ours answers; one of our names is ours."""
    site = tmp_path / "site"
    metadata = site / "mine-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[converter.architectures]\nmine = mine:ARCHITECTURES\n")
    (site / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from converter.architectures import architectures\n"
        "from converter.architectures.spec import HFClass\n"
        "llama = architectures()['llama']\n"
        "mine = replace(llama, gguf='mine', hf=(HFClass('MineForCausalLM', 'mine'),))\n"
        "ARCHITECTURES = (mine, replace(llama, hf=()))\n"
    )
    builders.llama_folder(tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps({**config, "architectures": ["MineForCausalLM"]}))
    command = [sys.executable, "-m", "converter", str(tmp_path / "m"), str(tmp_path / "m.gguf"), "--no-tokenizer"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with converter.open_checkpoint(tmp_path / "m.gguf") as made:
        assert made.config["general.architecture"].value == "mine"
