"""No false alarm: correct conversions of every recipe, family and route pass, and every tensor is reproduced."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from support import importance, models

import converter
from converter import Request
from converter.errors import MissingImportance, UnsupportedFeature
from converter.housekeeping.edit import Set, edit
from converter.quant.recipes import RECIPES
from converter.verify.results import Verification
from converter.verify.verifier import verify

QUANTIZED = [name for name, recipe in RECIPES.items() if recipe.base is not None]
# Every family in a width that is a multiple of 256 or is not, with recipes of each kind.
FAMILIES = {
    "llama3-96": ("Q4_K_M", "BF16"), "mistral-96": ("Q5_1", "F16"), "mixtral-96": ("Q8_0", "MXFP4_MOE"),
    "qwen2-96": ("Q4_K_S", "F32"), "qwen3-96": ("IQ4_NL", "Q3_K_M"), "qwen3moe-96": ("Q5_0", "MXFP4_MOE"),
    "stories260K": ("Q4_0", "Q6_K"), "qwen3-256": ("IQ2_XS", "Q2_K_S"),
}  # fmt: skip
EXTENSIONS = ("pt", "npz", "onnx", "h5", "msgpack", "safetensors")


def assert_right(result: Verification, reproduced: bool | None = True, told: bool = False) -> None:
    """No failed finding (and, unless `told`, none at all), and all bytes are those of the encoder."""
    assert [str(each) for each in result.findings if each.failed or not told] == []
    assert result.passed and result.tensors
    if reproduced is not None:
        assert [each.name for each in result.tensors if each.reproduced is not reproduced] == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")

    @cache
    def build(name: str) -> Path:
        return models.FIXTURES / name if name in models.FIXTURE_MODELS else models.build_model(name, folder)

    return build


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, model: Callable[[str], Path]) -> Callable[[str], Path]:
    """An importance matrix for a model of its own: entries of all tensors but the embedding, experts without counts."""
    folder = tmp_path_factory.mktemp("matrices")

    @cache
    def build(name: str) -> Path:
        with converter.plan(model(name), folder / "none.gguf").checkpoint as planned:
            shapes = {tensor.name: tensor.info.shape for tensor in planned.tensors.values()}
        return importance.write_matrix(folder / f"{name}.gguf", full_matrix(name, shapes))

    return build


def full_matrix(name: str, shapes: dict[str, tuple[int, ...]]) -> importance.Matrix:
    """With the one entry that importance.build_matrix leaves out on purpose."""
    made = importance.build_matrix(name, shapes)
    left_out = "blk.1.attn_v.weight"
    rest = importance.build_matrix(name, {"v.weight": shapes[left_out]})
    return importance.Matrix(
        {**made.sums, left_out: rest.sums["v.weight"]}, {**made.counts, left_out: rest.counts["v.weight"]}
    )


def check_recipe(source: Path, target: Path, recipe: str, matrix: Path) -> None:
    """Made without and with the matrix, where it can be; verified with and without it, and without encoding."""
    made = 0
    for request in (Request(quant=recipe.lower()), Request(quant=recipe.lower(), imatrix=matrix)):
        try:
            converter.convert(source, target, request, force=True)
        except MissingImportance:
            continue
        made += 1
        weighted = request.types.imatrix is not None
        assert_right(verify(source, target), None if weighted else True)
        assert_right(verify(source, target, encode=False), None, told=True)
        if weighted:
            assert_right(verify(source, target, Request(imatrix=matrix)))
    assert made, "not made at all"


@pytest.mark.parametrize("recipe", QUANTIZED)
def test_every_recipe_on_rows_of_whole_blocks(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = importance.Model("llama", 2, 8, 2)
    monkeypatch.setitem(importance.MODELS, "small", small)
    source = importance.build_model("small", tmp_path / "source.gguf")
    matrix = importance.write_matrix(tmp_path / "imatrix.gguf", full_matrix("small", importance.shapes(small)))
    check_recipe(source, tmp_path / "out.gguf", recipe, matrix)


@pytest.mark.parametrize("recipe", [name for name in QUANTIZED if name != "Q1_0"])  # 64 columns are no block of 128
def test_every_recipe_on_trained_weights(recipe: str, tmp_path: Path) -> None:
    """stories260K is 64 wide, so that the types of 256 fall back."""
    source, matrix = models.FIXTURES / "stories260K", importance.FIXTURES / "stories260K.dat"
    check_recipe(source, tmp_path / "out.gguf", recipe, matrix)


@pytest.mark.parametrize("recipe", ["Q4_K_M", "IQ3_XXS", "Q2_K"])
def test_a_larger_trained_model(
    recipe: str, tmp_path: Path, model: Callable[[str], Path], matrix: Callable[[str], Path]
) -> None:
    source, target = model("kjv-llama"), tmp_path / "out.gguf"
    request = Request(quant=recipe.lower(), imatrix=matrix("kjv-llama") if recipe == "IQ3_XXS" else None)
    converter.convert(source, target, request)
    assert_right(verify(source, target, Request(imatrix=request.types.imatrix)))
    assert_right(verify(source, target, encode=False), None)
    assert_right(verify(source, target), None)


@pytest.mark.parametrize(
    ("name", "recipe"), [(name, recipe) for name, recipes in FAMILIES.items() for recipe in recipes]
)
def test_every_family(
    name: str, recipe: str, tmp_path: Path, model: Callable[[str], Path], matrix: Callable[[str], Path]
) -> None:
    source, target = model(name), tmp_path / "out.gguf"
    for given in (None, matrix(name)):
        try:
            converter.convert(source, target, Request(quant=recipe.lower(), imatrix=given), force=True)
        except MissingImportance:
            assert given is None
            continue
        assert_right(verify(source, target, Request(imatrix=given)))
        assert_right(verify(source, target, encode=False), None)
        if given is not None:
            assert_right(verify(source, target), None)


@pytest.mark.parametrize("recipe", ["q4_0", "q8_0", "bf16"])
def test_by_way_of_f16(recipe: str, tmp_path: Path, model: Callable[[str], Path]) -> None:
    source, target = model("mistral-96"), tmp_path / "out.gguf"
    converter.convert(source, target, Request(quant=recipe, via="f16"))
    assert_right(verify(source, target, Request(via="f16")))
    assert_right(verify(source, target), None)
    assert_right(verify(source, target, Request(via="f16"), encode=False), None)


@pytest.mark.parametrize("effort", [1, 2, 3])
def test_with_effort(effort: int, tmp_path: Path, model: Callable[[str], Path]) -> None:
    """The file says it and it is proved; where it does not, an encoder of others; one that nobody knows is refused."""
    source, target = model("kjv-llama"), tmp_path / "out.gguf"
    converter.convert(source, target, Request(quant="q4_k_m", effort=effort))
    assert_right(verify(source, target))
    edit(target, remove=["converter.effort"])
    unsaid = verify(source, target)
    assert_right(unsaid, None)
    assert sum(not each.reproduced for each in unsaid.tensors) > len(unsaid.tensors) // 2
    edit(target, set=[Set("converter.effort", "7", "u32")])
    with pytest.raises(UnsupportedFeature, match=r"converter\.effort is 7, which no encoder here knows"):
        verify(source, target)


@pytest.mark.parametrize("name", ["stories260K", "mixtral-96", "qwen2-96"])
@pytest.mark.parametrize("recipe", ["q4_0", "f16"])
def test_gguf_to_a_folder_and_back(name: str, recipe: str, tmp_path: Path, model: Callable[[str], Path]) -> None:
    first, folder, back = tmp_path / f"{name}.gguf", tmp_path / name, tmp_path / "back.gguf"
    converter.convert(model(name), first, Request(quant=recipe))
    converter.convert(first, f"{folder}/")
    converter.convert(folder, back)
    assert_right(verify(first, folder), told=True)
    assert_right(verify(folder, back), told=True)


@pytest.mark.parametrize("recipe", ["q4_0", "q5_k_m", "iq4_nl"])
def test_one_quantization_to_another(recipe: str, tmp_path: Path, model: Callable[[str], Path]) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    converter.convert(model("qwen3moe-96"), first, Request(quant="q8_0"))
    converter.convert(first, second, Request(quant=recipe, allow_requantize=True))
    assert_right(verify(first, second))
    assert_right(verify(first, second, encode=False), None)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_plain_files_there_and_back(extension: str, tmp_path: Path, model: Callable[[str], Path]) -> None:
    source = model("stories260K") / "model.safetensors"
    there, back = tmp_path / f"there.{extension}", tmp_path / "back.safetensors"
    converter.convert(source, there)
    converter.convert(there, back)
    for pair in ((source, there), (there, back), (source, back)):
        result = verify(*pair)
        assert_right(result, told=True)
        assert all(each.exact for each in result.tensors)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("extension", ["pt", "onnx", "safetensors"])
def test_casts(extension: str, dtype: str, tmp_path: Path, model: Callable[[str], Path]) -> None:
    source, target = model("mistral-96") / "model.safetensors", tmp_path / f"cast.{extension}"
    converter.convert(source, target, Request(dtype=dtype, tensors_only=True))
    assert_right(verify(source, target), told=True)
    assert_right(verify(source, target, encode=False), None, told=True)


@pytest.mark.parametrize("recipe", [None, "q4_0"])
def test_split_sets_and_shards(recipe: str | None, tmp_path: Path, model: Callable[[str], Path]) -> None:
    source, folder = model("stories260K"), tmp_path / "shards"
    converter.convert(source, tmp_path / "set.gguf", Request(quant=recipe, split_max_tensors=10))
    assert_right(verify(source, min(tmp_path.glob("set-00001-*.gguf"))))
    converter.convert(source, f"{folder}/", Request(split_max_size=300_000))
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_right(verify(source, folder), told=True)
    converter.convert(folder, tmp_path / "joined.gguf", Request(quant=recipe))
    assert_right(verify(source, tmp_path / "joined.gguf"), told=True)


@pytest.mark.parametrize(
    "request_",
    [
        Request(quant="q4_k_m", pure=True), Request(quant="q4_0", output_type="q8_0", embedding_type="q5_0"),
        Request(quant="q4_0", tensor_types=(("ffn_down", "q8_0"),)), Request(quant="q8_0", leave_output=True),
    ],
    ids=["pure", "types", "pattern", "leave"],
)  # fmt: skip
def test_options_that_are_told(request_: Request, tmp_path: Path, model: Callable[[str], Path]) -> None:
    converter.convert(model("mixtral-96"), tmp_path / "out.gguf", request_)
    assert_right(verify(model("mixtral-96"), tmp_path / "out.gguf", request_))
