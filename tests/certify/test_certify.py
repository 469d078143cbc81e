"""Certificates: our own files and llama-quantize's are proven, whatever is changed in one is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support import architectures, calibrations, faults, importance, models
from support.faults import FAULTS, UP, Fault, Workshop, flip, in_bytes
from support.hosts import Host, named, serving
from support.llama_quantizer import needs_llama, quantize
from support.rewriting import again, apart, rewritten, without

import converter
from converter import Request
from converter.certify import certify, check_attestation
from converter.certify.attestation import as_bytes, statement
from converter.certify.results import NOT, PROVEN, Certificate
from converter.cli.main import main
from converter.errors import ConverterError, NotFromSource, UnsupportedFeature
from converter.metadata import Value
from converter.quant.recipes import RECIPES
from converter.verify.verifier import verify

#: File types of llama-quantize that need no importance matrix and are quick to make.
FILE_TYPES = ("Q4_K_M", "Q2_K", "Q3_K_L", "Q6_K", "Q8_0", "Q4_0", "Q5_1", "IQ4_XS", "TQ2_0", "MXFP4_MOE", "F16")
EVERY = [name for name, recipe in RECIPES.items() if recipe.base is not None and recipe.file_type is not None]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("certify"))


def source_of(shop: Workshop, name: str) -> Path:
    return models.FIXTURES / name if name in models.FIXTURE_MODELS else shop.source(name)


def assert_proven(found: Certificate, way: str = "source", mixture: str = "") -> None:
    assert found.verdict == PROVEN, [(each.name, each.reason) for each in found.unproven] + list(found.findings)  # type: ignore[operator]
    assert not found.n_differing and found.way == way
    assert found.mixture.startswith(mixture.lower())


# ---------------------------------------------------------------------------------------------- what is proven


@pytest.mark.parametrize("name", [*models.MODELS, *models.FIXTURE_MODELS])
def test_our_own_files_are_proven(name: str, shop: Workshop, tmp_path: Path) -> None:
    for quant in ("q4_k_m", "q8_0"):
        made = tmp_path / f"{quant}.gguf"
        converter.convert(source_of(shop, name), made, Request(quant=quant))
        assert_proven(certify(source_of(shop, name), made), mixture=quant)


@needs_llama
@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_files_of_llama_quantize_are_proven(file_type: str, shop: Workshop, tmp_path: Path) -> None:
    for name in ("llama3-256", "qwen3moe-96"):
        plain = tmp_path / f"{name}.gguf"
        converter.convert(shop.source(name), plain, Request())
        assert quantize(plain, tmp_path / "out.gguf", RECIPES[file_type].file_type or 0)
        assert_proven(certify(shop.source(name), tmp_path / "out.gguf"), mixture=file_type)


@needs_llama
@pytest.mark.parametrize("way", ["f16", "bf16", "q8_0"])
def test_files_in_between_are_found(way: str, shop: Workshop, tmp_path: Path) -> None:
    """F32 weights that were written in another precision first, and quantized from there by llama.cpp."""
    source, between = shop.source("qwen3-256"), tmp_path / "between.gguf"
    converter.convert(source, between, Request(quant=way))
    assert quantize(between, tmp_path / "out.gguf", 15, allow_requantize=True)
    found = certify(source, tmp_path / "out.gguf")
    assert_proven(found, way)


def test_efforts_are_found_with_and_without_the_key(shop: Workshop, tmp_path: Path) -> None:
    source, made = shop.source("llama3-256"), tmp_path / "effort.gguf"
    converter.convert(source, made, Request(quant="q4_k_m", effort=1))
    assert_proven(certify(source, made), "source + effort 1")
    unsaid = rewritten(made, tmp_path / "unsaid.gguf", {"converter.effort": None})
    assert_proven(certify(source, unsaid), "source + effort 1")


def matrix_of(name: str, plain: Path, path: Path) -> tuple[importance.Matrix, Path]:
    """What llama-imatrix might have measured of the model in `plain`, and its file."""
    with converter.open_checkpoint(plain) as model:
        built = importance.build_matrix(name, {name: tensor.info.shape for name, tensor in model.tensors.items()})
    return built, importance.write_matrix(path, built)


@needs_llama
@pytest.mark.parametrize("file_type", ["Q4_K_M", "IQ2_XS", "IQ3_XXS"])
def test_files_of_llama_quantize_with_a_matrix_are_proven(file_type: str, shop: Workshop, tmp_path: Path) -> None:
    source, plain = shop.source("mixtral-256"), tmp_path / "plain.gguf"
    converter.convert(source, plain, Request())
    built, path = matrix_of("mixtral-256", plain, tmp_path / "imatrix.gguf")
    number = RECIPES[file_type].file_type or 0
    assert importance.quantize(plain, tmp_path / "out.gguf", number, built.means(), path.name, "text.txt", 7)
    assert_proven(certify(source, tmp_path / "out.gguf", Request(imatrix=path)), "source + imatrix", file_type)


def test_an_importance_matrix_is_followed_or_asked_for(shop: Workshop, tmp_path: Path) -> None:
    source, made = shop.source("llama3-256"), tmp_path / "weighted.gguf"
    _, matrix = matrix_of("llama3-256", shop.good("llama3-256", "bf16"), tmp_path / "imatrix.gguf")
    converter.convert(source, made, Request(quant="q4_k_m", imatrix=matrix))
    found = certify(source, made, Request(imatrix=matrix))
    assert_proven(found, "source + imatrix", "q4_k_m")
    assert [each.role for each in found.materials][-1] == "importance matrix"
    without_it = certify(source, made)
    assert without_it.verdict == NOT
    assert any("--imatrix" in each.hint for each in without_it.findings)
    plain = shop.good("llama3-256", "q4_k_m")
    assert_proven(certify(source, plain, Request(imatrix=matrix)), "source")


def test_a_calibration_is_followed_or_asked_for(tmp_path: Path) -> None:
    source, made = models.FIXTURES / "kjv-llama", tmp_path / "made.gguf"
    kept = tmp_path / "kept.calibration.safetensors"
    uses = {f"blk.{block}.attn_q.weight": ["q", [0]] for block in range(6)}
    calibrations.write_calibration(kept, {"q": [calibrations.factor(calibrations.inputs(256))]}, uses)
    converter.convert(source, made, Request(quant="q4_k_m", calibrate=kept))
    found = certify(source, made)  # it lies beside the file
    assert_proven(found, "source + calibration", "q4_k_m")
    assert [each.role for each in found.materials][-1] == "calibration"
    elsewhere = kept.rename(tmp_path.parent / f"{tmp_path.name}-moved.calibration.safetensors")
    assert certify(source, made, Request(calibrate=elsewhere)).verdict == PROVEN
    without_it = certify(source, made)
    assert without_it.verdict == NOT
    assert any("--calibrate" in each.hint for each in without_it.findings)


def test_shards_and_mixtures_of_ones_own(shop: Workshop, tmp_path: Path) -> None:
    source = shop.source("mixtral-96")
    request = Request(quant="q4_k_m", tensor_types=(("ffn_up", "q6_k"), ("attn_v", "q5_0")), split_max_tensors=20)
    converter.convert(source, tmp_path / "own.gguf", request)
    parts = sorted(tmp_path.glob("own-*-of-*.gguf"))
    found = certify(source, parts[0])
    assert_proven(found)
    assert [each.name for each in found.subjects] == [part.name for part in parts]
    assert "but for" in found.mixture and "tensors" in found.mixture


def test_a_tied_output_that_is_stored_apart(shop: Workshop, tmp_path: Path) -> None:
    good = shop.good("qwen2-96", "q8_0")
    apart = rewritten(good, tmp_path / "apart.gguf", None, again("token_embd.weight", "output.weight"))
    assert_proven(certify(shop.source("qwen2-96"), apart))


def test_experts_in_tensors_of_their_own(shop: Workshop, tmp_path: Path) -> None:
    """As until April 2024; each is of its own tensor of the source, and no other's."""
    source, good = shop.source("mixtral-256"), shop.good("mixtral-256", "q4_k_m")
    older = rewritten(good, tmp_path / "older.gguf", None, apart)
    found = certify(source, older)
    assert_proven(found, mixture="q4_k_m, as")
    (third,) = (each for each in found.tensors if each.name == "blk.1.ffn_up.3.weight")
    assert third.sources == ("model.layers.1.block_sparse_moe.experts.3.w3.weight",)
    swapped = rewritten(older, tmp_path / "swapped.gguf", None, faults.swapped(third.name, "blk.1.ffn_up.4.weight"))
    found = certify(source, swapped)
    assert found.verdict == NOT
    assert {each.name for each in found.unproven} == {third.name, "blk.1.ffn_up.4.weight"}
    one_less = certify(source, rewritten(older, tmp_path / "less.gguf", None, without(third.name)))
    assert [each.subject for each in one_less.findings if each.failed] == [third.name]
    assert verify(source, older).passed and not verify(source, swapped).passed


@pytest.mark.parametrize("threads", [1, 3])
def test_the_result_does_not_depend_on_threads(threads: int, shop: Workshop) -> None:
    source, good = shop.source("llama3-256"), shop.good("llama3-256", "q4_k_m")
    one, other = certify(source, good, threads=threads), certify(source, good)
    assert one.tensors == other.tensors and one.root == other.root and one.subjects == other.subjects


@needs_llama
@pytest.mark.parametrize("name", ["bert-classifier", "ernie4_5-moe-tiny", "kimi-linear-tiny"])
def test_axes_that_llama_quantize_drops(name: str, tmp_path: Path) -> None:
    source, plain = architectures.build(name, tmp_path), tmp_path / "plain.gguf"
    converter.convert(source, plain, Request())
    assert quantize(plain, tmp_path / "out.gguf", 15)
    assert_proven(certify(source, tmp_path / "out.gguf"))


# ------------------------------------------------------------------------------------------ what is not proven


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_every_kind_of_tampering_is_caught(fault: Fault, shop: Workshop, tmp_path: Path) -> None:
    """And named: the tensor or the key, and no other."""
    found = certify(shop.source(fault.model), shop.damaged(fault, tmp_path))
    if fault.check == "type":  # of these very numbers, in a mixture of one's own: its types are its own affair
        assert [each.name for each in found.unproven] == [fault.subject], "decoded and encoded again"
    assert found.verdict != PROVEN
    named = {each.name for each in found.unproven} | {each.subject for each in found.findings if each.failed}
    assert named == {fault.subject} | fault.also


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.chat_template.tool_use", "{{ evil }}"),
        ("general.sampling.temp", 0.0),
        ("llama.rope.scaling.factor", 8.0),
    ],
)
def test_keys_that_the_source_does_not_give_are_no_part_of_it(
    key: str, value: Any, shop: Workshop, tmp_path: Path
) -> None:
    kind = "str" if isinstance(value, str) else "f32"
    bad = rewritten(shop.good("llama3-256", "q4_k_m"), tmp_path / "bad.gguf", {key: Value(kind, value)})
    found = certify(shop.source("llama3-256"), bad)
    assert found.verdict == NOT and [each.subject for each in found.findings if each.failed] == [key]


def test_keys_that_older_converters_did_not_write(shop: Workshop, tmp_path: Path) -> None:
    """Told where a runtime takes the same without them, named where it does not."""
    unwritten = ("general.type", "llama.vocab_size", "tokenizer.ggml.pre", "tokenizer.ggml.add_sep_token")
    for name, failed in (("mistral-256", []), ("llama3-256", ["tokenizer.ggml.pre"])):
        older = rewritten(shop.good(name, "q4_k_m"), tmp_path / f"{name}.gguf", dict.fromkeys(unwritten))
        found = certify(shop.source(name), older)
        assert found.verdict == (NOT if failed else PROVEN)
        assert {each.subject for each in found.findings} == set(unwritten)
        assert [each.subject for each in found.findings if each.failed] == failed
        assert any("older converters" in each.hint for each in found.findings)


def test_sides_that_lie_elsewhere(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement is that of the same files here; a byte that another one arrives as is named."""
    shutil.copytree(shop.source("llama3-256"), tmp_path / "org/llama3-256")
    (tmp_path / "org/quants").mkdir()
    shutil.copy(shop.good("llama3-256", "q4_k_m"), tmp_path / "org/quants/model.gguf")
    here = as_bytes(statement(certify(tmp_path / "org/llama3-256", tmp_path / "org/quants/model.gguf")))
    source, target = "hf://org/llama3-256", "hf://org/quants/model.gguf"
    with serving(Host(tmp_path)) as host:
        named(host, monkeypatch)
        found = certify(source, target)
        assert as_bytes(statement(found)) == here and (found.source, found.target) == (source, target)
        assert host.sent["org/quants/model.gguf"] == (tmp_path / "org/quants/model.gguf").stat().st_size, "once"
        attested = tmp_path / "a.json"
        attested.write_bytes(here)
        assert check_attestation(target, attested, source).passed
        rewritten(tmp_path / "org/quants/model.gguf", tmp_path / "bad.gguf", None, in_bytes(UP, flip(5, 0, 0)))
        (tmp_path / "bad.gguf").rename(tmp_path / "org/quants/bad.gguf")
        assert [each.name for each in certify(source, "hf://org/quants/bad.gguf").unproven] == [UP]


def test_names_of_the_model_are_told_and_decide_nothing(shop: Workshop, tmp_path: Path) -> None:
    renamed = rewritten(shop.good("llama3-256", "q4_k_m"), tmp_path / "x.gguf", {"general.name": Value("str", "x")})
    found = certify(shop.source("llama3-256"), renamed)
    assert found.verdict == PROVEN and [each.subject for each in found.findings] == ["general.name"]


def test_one_changed_block_does_not_pass_for_arithmetic(shop: Workshop, tmp_path: Path) -> None:
    """Another build shows everywhere; a block of one tensor alone was changed."""
    bad = rewritten(shop.good("llama3-256", "q4_k_m"), tmp_path / "bad.gguf", None, in_bytes(UP, flip(5, 0, 0)))
    found = certify(shop.source("llama3-256"), bad)
    assert found.verdict == NOT
    (tensor,) = found.unproven
    assert (tensor.name, tensor.differing.count, tensor.differing.scale_steps) == (UP, 1, 1)
    assert tensor.differing.first == 5 * 256 and "1 of 512 blocks" in tensor.reason


def test_another_model_and_less_of_it(shop: Workshop, tmp_path: Path) -> None:
    good = shop.good("llama3-256", "q4_k_m")
    assert certify(shop.source("mistral-256"), good).verdict == NOT
    less = rewritten(good, tmp_path / "less.gguf", None, without(UP))
    assert certify(shop.source("llama3-256"), less).verdict == NOT


def test_keys_of_which_the_source_says_nothing_are_not_proven(shop: Workshop, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((shop.source("llama3-256") / "model.safetensors").read_bytes())
    converter.convert(bare, tmp_path / "bare.gguf", Request(tensors_only=True))
    found = certify(bare, tmp_path / "bare.gguf", Request(tensors_only=True))
    assert found.verdict == NOT and not found.unproven
    assert [each.check for each in found.findings if each.failed] == ["metadata"]


def test_what_cannot_be_certified(shop: Workshop, tmp_path: Path) -> None:
    source = shop.source("llama3-256")
    with pytest.raises(UnsupportedFeature, match="a GGUF can be certified"):
        certify(source, source)
    newer = rewritten(shop.good("llama3-256", "q8_0"), tmp_path / "x.gguf", {"converter.effort": Value("u32", 99)})
    with pytest.raises(UnsupportedFeature, match="no encoder here knows"):
        certify(source, newer)


# --------------------------------------------------------------------------------------------------- the command


def test_the_command_and_its_exit_codes(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, good = str(shop.source("llama3-256")), str(shop.good("llama3-256", "q4_k_m"))
    reports = [tmp_path / f"report.{kind}" for kind in ("json", "md", "html", "txt")]
    options = [word for path in reports for word in ("--report", str(path))]
    assert main(["certify", source, good, "-o", str(tmp_path / "a.json"), *options]) == 0
    assert "\nPROVEN: " in capsys.readouterr().out
    for path in reports:
        assert "PROVEN" in path.read_text("utf-8") and UP in reports[2].read_text("utf-8")
    assert main(["certify", source, good, "-o", str(tmp_path / "a.json")]) == 53
    bad = rewritten(Path(good), tmp_path / "bad.gguf", None, in_bytes(UP, flip(5, 0, 0)))
    code = main(["certify", source, str(bad), "-o", str(tmp_path / "b.json"), *options])
    assert code == NotFromSource.exit_code == 43
    assert not (tmp_path / "b.json").exists() and "not written" in capsys.readouterr().out
    assert "NOT FROM THIS SOURCE" in reports[2].read_text("utf-8")


# ------------------------------------------------------------------------------------------------- everything


@pytest.mark.slow
@needs_llama
@pytest.mark.parametrize("name", [*models.MODELS, *models.FIXTURE_MODELS])
def test_every_file_type_of_every_model(name: str, shop: Workshop, tmp_path: Path) -> None:
    """Ours and llama-quantize's, all types that need no importance matrix."""
    source, plain = source_of(shop, name), tmp_path / "plain.gguf"
    converter.convert(source, plain, Request())
    proven = 0
    for file_type in EVERY:
        if not quantize(plain, tmp_path / "out.gguf", RECIPES[file_type].file_type or 0):
            continue
        assert_proven(certify(source, tmp_path / "out.gguf"))
        converter.convert(source, tmp_path / "own.gguf", Request(quant=file_type), force=True)
        assert_proven(certify(source, tmp_path / "own.gguf"))
        proven += 2
    assert proven > 30


@pytest.mark.slow
@needs_llama
@pytest.mark.parametrize("name", architectures.NAMES)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    """What llama-quantize makes of its sample, and what we do."""
    source, plain = architectures.build(name, tmp_path), tmp_path / "plain.gguf"
    try:
        converter.convert(source, plain, Request())
    except ConverterError as error:
        pytest.skip(f"no model by itself: {error}")
    if not quantize(plain, tmp_path / "out.gguf", 15):
        pytest.skip("llama.cpp refuses it")
    assert_proven(certify(source, tmp_path / "out.gguf"))
    converter.convert(source, tmp_path / "own.gguf", Request(quant="q4_k_m", allow_requantize=True))
    assert_proven(certify(source, tmp_path / "own.gguf"))
