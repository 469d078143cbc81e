"""Recipes of files: read out of a GGUF, given to a model, and known again by the verifier."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.paths import FIXTURES

from converter.cli.main import main
from converter.errors import OutputExists, UnsupportedFeature, UsageError
from converter.formats.registry import open_checkpoint
from converter.mixing.stored import stored_recipe
from converter.mixture import Mixture, Rule
from converter.pipeline import convert, plan
from converter.planning.said import TYPES_KEY
from converter.quant.recipe_files import read_recipe
from converter.request import Request
from converter.verify.verifier import verify

KJV, STORIES = FIXTURES / "kjv-llama", FIXTURES / "stories260K"
OWN = Mixture("Q4_K_M", (Rule("blk.{block}.ffn_(up|gate).weight", "Q3_K", "0-1"), Rule("output.weight", "Q8_0")))


def types(path: Path) -> dict[str, str]:
    with open_checkpoint(path) as checkpoint:
        return {name: tensor.info.dtype.name for name, tensor in checkpoint.tensors.items()}


@pytest.mark.parametrize("source", [KJV, STORIES], ids=lambda path: path.name)
@pytest.mark.parametrize("quant", ["q4_k_m", "q3_k_m", "q5_0", "bf16"])
def test_the_recipe_of_a_quant_gives_the_same_bytes(source: Path, quant: str, tmp_path: Path) -> None:
    convert(source, tmp_path / "a.gguf", quant=quant)
    stored_recipe(tmp_path / "a.gguf", tmp_path / "r.toml")
    convert(source, tmp_path / "b.gguf", recipe=read_recipe(tmp_path / "r.toml"))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_mixture_is_known_again(tmp_path: Path) -> None:
    convert(KJV, tmp_path / "a.gguf", recipe=OWN)
    found = stored_recipe(tmp_path / "a.gguf").mixture
    assert (found.base, found.architecture, found.block_count) == ("Q4_K_M", "llama", 6)
    convert(KJV, tmp_path / "b.gguf", recipe=found)
    assert types(tmp_path / "a.gguf") == types(tmp_path / "b.gguf")
    own = types(tmp_path / "b.gguf")
    assert (
        own["output.weight"] == "Q8_0" and own["blk.1.ffn_up.weight"] == "Q3_K" and own["blk.2.ffn_up.weight"] == "Q4_K"
    )
    for recipe in (None, OWN, found):
        proof = verify(KJV, tmp_path / "a.gguf", Request(recipe=recipe))
        assert proof.passed and proof.summary()["reproduced"] == proof.summary()["tensors"]


def test_a_type_that_was_changed_is_none_of_the_mixture(tmp_path: Path) -> None:
    convert(KJV, tmp_path / "a.gguf", recipe=OWN)
    convert(
        tmp_path / "a.gguf", tmp_path / "b.gguf", recipe=OWN, allow_requantize=True, tensor_types=[("ffn_up", "q2_k")]
    )
    with open_checkpoint(tmp_path / "a.gguf") as old, open_checkpoint(tmp_path / "b.gguf") as new:
        assert old.config[TYPES_KEY] != new.config[TYPES_KEY]
    content = (tmp_path / "b.gguf").read_bytes()
    with open_checkpoint(tmp_path / "b.gguf") as new:
        said = str(new.config[TYPES_KEY].value).encode()  # type: ignore[union-attr]
    (tmp_path / "c.gguf").write_bytes(content.replace(said, said[::-1]))
    proof = verify(KJV, tmp_path / "c.gguf")
    assert not proof.passed and any(each.check == "type" and each.failed for each in proof.findings)
    assert not verify(KJV, tmp_path / "b.gguf", Request(recipe=OWN)).passed, "other types than those of this recipe"


def test_the_key_goes_with_the_types(tmp_path: Path) -> None:
    convert(KJV, tmp_path / "a.gguf", recipe=OWN)
    convert(tmp_path / "a.gguf", tmp_path / "copy.gguf")
    convert(tmp_path / "a.gguf", tmp_path / "b.gguf", quant="q2_k", allow_requantize=True)
    with open_checkpoint(tmp_path / "copy.gguf") as copy, open_checkpoint(tmp_path / "b.gguf") as other:
        assert TYPES_KEY in copy.config and TYPES_KEY not in other.config


def test_what_does_not_fit_falls_back_and_is_told(tmp_path: Path) -> None:
    with_notes = plan(STORIES, tmp_path / "s.gguf", recipe=OWN)
    with with_notes.checkpoint:
        said = [event.kind for event in with_notes.report.events]
        assert "TypeFallback" in said, "rows of 64 do not divide"
        assert any("output.weight" in str(event) for event in with_notes.report.events), "tied: there is none"
    assert {step.rule.split(";")[0] for step in with_notes.steps} > {
        "recipe: blk.{block}.ffn_(up|gate).weight of blocks 0-1"
    }


def test_flags_come_first(tmp_path: Path) -> None:
    made = plan(
        KJV, tmp_path / "a.gguf", recipe=OWN, quant="q6_k", output_type="q5_0", tensor_types=[("0.ffn_up", "q4_0")]
    )
    made.checkpoint.close()
    own = {step.name: step.type for step in made.steps}
    assert (own["output.weight"], own["blk.0.ffn_up.weight"], own["blk.1.ffn_up.weight"]) == ("Q5_0", "Q4_0", "Q3_K")
    assert own["blk.0.attn_q.weight"] == "Q6_K"


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="no GGUF"):
        stored_recipe(KJV)
    with pytest.raises(UsageError, match="another model"):
        plan(KJV, tmp_path / "a.gguf", recipe=Mixture("Q4_0", (Rule("none.weight", "Q4_0"),)))
    convert(STORIES, tmp_path / "s.gguf", quant="q8_0")
    (tmp_path / "r.toml").touch()
    with pytest.raises(OutputExists):
        stored_recipe(tmp_path / "s.gguf", tmp_path / "r.toml")


def test_the_command_and_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(KJV, tmp_path / "a.gguf", recipe=OWN)
    assert main(["recipe", str(tmp_path / "a.gguf")]) == 0
    (tmp_path / "r.toml").write_text(capsys.readouterr().out, "utf-8")
    assert main(["recipe", str(tmp_path / "a.gguf"), "-o", str(tmp_path / "r.toml"), "--force"]) == 0
    assert main([str(KJV), str(tmp_path / "b.gguf"), "--recipe", str(tmp_path / "r.toml"), "--verify"]) == 0
    (tmp_path / "m.toml").write_text(f"[[models]]\nsource = '{KJV}'\nout = 'c.gguf'\nrecipe = 'r.toml'\n", "utf-8")
    assert main(["batch", str(tmp_path / "m.toml")]) == 0
    assert types(tmp_path / "b.gguf") == types(tmp_path / "c.gguf") == types(tmp_path / "a.gguf")
