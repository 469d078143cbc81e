"""A Modelfile says what the GGUF says, and its reader, which goes by Ollama's grammar, reads it back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import adapters, architectures, models
from support.rewriting import rewritten

import converter
from converter.cli.main import main
from converter.errors import CorruptFile, OutputExists, UnsupportedFeature, UsageError
from converter.housekeeping.modelfile import Extras, Instruction, line, modelfile, read
from converter.housekeeping.package import pack
from converter.housekeeping.shards import split
from converter.metadata import Array, Value, text

KJV = models.FIXTURES / "kjv-llama"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("modelfile") / "my model.gguf"
    converter.convert(KJV, path)
    return path


# ---------------------------------------------------------------------------------------------- the grammar

DOCUMENTED = '''\ufeff# sets the temperature to 1
FROM llama3.2
PARAMETER temperature 1
parameter  stop "AI assistant:"
\tPARAMETER num_ctx   4096  \r
TEMPLATE """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}"""

SYSTEM You are Mario, "acting" as an assistant. # no comment
LICENSE """
two "quoted" lines
"""
MESSAGE user Is Toronto in Canada?
MESSAGE assistant "yes,
it is"
ADAPTER ./ollama-lora.gguf
REQUIRES 0.14.0'''


def test_the_documented_grammar() -> None:
    """https://docs.ollama.com/modelfile"""
    assert read(DOCUMENTED) == [
        Instruction("FROM", "llama3.2"),
        Instruction("PARAMETER", "1", "temperature"),
        Instruction("PARAMETER", "AI assistant:", "stop"),
        Instruction("PARAMETER", "4096", "num_ctx"),
        Instruction("TEMPLATE", "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"),
        Instruction("SYSTEM", 'You are Mario, "acting" as an assistant. # no comment'),
        Instruction("LICENSE", '\ntwo "quoted" lines\n'),
        Instruction("MESSAGE", "Is Toronto in Canada?", "user"),
        Instruction("MESSAGE", "yes,\nit is", "assistant"),
        Instruction("ADAPTER", "./ollama-lora.gguf"),
        Instruction("REQUIRES", "0.14.0"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("PARAMETER num_ctx 1", "no FROM"),
        ("", "no FROM"),
        ("FROM a\nRUN rm -r /", "line 2: 'RUN' is no instruction"),
        ("FROM a\nMESSAGE wizard hi", "no role"),
        ('FROM a\nSYSTEM """open\nmore', "line 2: a quote is not closed"),
        ('FROM a\nSYSTEM "open', "a quote is not closed"),
        ("FROM", "a word and a space"),
        ("FROM a\n%", "a word and a space"),
    ],
)
def test_what_is_no_modelfile(text: str, says: str) -> None:
    with pytest.raises(CorruptFile, match=says):
        read(text)


def test_a_quote_ends_only_with_its_line() -> None:
    assert read('FROM a\nSYSTEM """x """ y\nz"""')[1].value == 'x """ y\nz'
    assert read('FROM a\nSYSTEM "x" y\nz"')[1].value == 'x" y\nz'


SAYABLE = ("", "x", " x ", "x\n", '"', '""', 'a "b" c', "\n", '"""', 'x"""y', '"x"', "\t", "a\r\nb")
UNSAYABLE = ('x """\ny"', 'x"""\ny', "\x00", "\u200b", 'a"\nb"""  \nc', "\N{NO-BREAK SPACE}x")


@pytest.mark.parametrize("value", [*SAYABLE, *UNSAYABLE])
def test_what_is_written_is_read(value: str) -> None:
    instruction = Instruction("SYSTEM", value)
    if value in SAYABLE:
        assert read(f"FROM a\n{line(instruction)}\nPARAMETER seed 1\n")[1] == instruction
    else:
        with pytest.raises(UsageError, match="cannot say"):
            line(instruction)


@given(st.text(st.sampled_from('"\n\r #x{\tF\x00 '), max_size=12), st.sampled_from(["SYSTEM", "FROM", "stop"]))
def test_no_text_becomes_another_instruction(value: str, name: str) -> None:
    instruction = Instruction("PARAMETER", value, name) if name == "stop" else Instruction(name, value)
    try:
        written = line(instruction)
    except UsageError:
        return
    assert read(f"FROM a\n{written}\nSYSTEM end\n")[1:] == [instruction, Instruction("SYSTEM", "end")]


# ------------------------------------------------------------------------------------------------ of a model

NOTHING = Extras()


def of(path: Path, extras: Extras = NOTHING) -> dict[str, list[str]]:
    """Values by instruction or parameter."""
    made = modelfile(path, path.with_name("Modelfile"), extras, force=True)
    found: dict[str, list[str]] = {}
    for each in read((path.with_name("Modelfile")).read_bytes().decode()):
        found.setdefault(each.key or each.name, []).append(each.value)
    assert tuple(read(made.text)) == made.instructions
    return found


def test_what_the_file_says(model: Path) -> None:
    pytest.importorskip("jinja2")
    found = of(model)
    assert found.pop("TEMPLATE")[0].endswith("<|im_start|>assistant\n")
    assert found == {
        "FROM": ["./my model.gguf"], "LICENSE": ["mit"], "temperature": ["0.8"], "top_p": ["0.95"], "num_ctx": ["256"],
        "stop": ["<|im_start|>", "<|im_end|>", "<|end_of_text|>"],
    }  # fmt: skip


def test_a_template_that_no_family_has(model: Path, tmp_path: Path) -> None:
    own = rewritten(model, tmp_path / "own.gguf", {"tokenizer.chat_template": text("{{ messages[0].content }}?!")})
    made = modelfile(own)
    assert "TEMPLATE" not in made.text and made.family is None
    assert "Ollama goes by what it knows of it itself; --template FILE" in str(made.events[-1])
    given = of(own, Extras(template="{{ .Prompt }}", system="be\nbrief", licences=("one\n", "two"), num_ctx=7))
    assert (given["TEMPLATE"], given["SYSTEM"], given["LICENSE"]) == (
        ["{{ .Prompt }}"],
        ["be\nbrief"],
        ["one\n", "two"],
    )
    assert given["num_ctx"] == ["7"]


def test_long_contexts_are_not_asked_for(model: Path, tmp_path: Path) -> None:
    long = rewritten(model, tmp_path / "long.gguf", {"llama.context_length": Value("u32", 131072)})
    assert of(long)["num_ctx"] == ["8192"]


HOSTILE = (
    'x"""\nFROM /etc/passwd\nSYSTEM """', '"\nADAPTER ./evil\n"', "\nPARAMETER stop a", "\x00\x1b[2J", "{{ .System }}"
)  # fmt: skip


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_keys(said: str, model: Path, tmp_path: Path) -> None:
    """Whatever keys hold, there is one FROM, and what is read is what they say or less."""
    with converter.open_checkpoint(model) as opened:
        tokens = list(opened.config["tokenizer.ggml.tokens"].values)  # type: ignore[union-attr]
        eos = opened.config["tokenizer.ggml.eos_token_id"].value  # type: ignore[union-attr]
    tokens[int(eos)] = said
    keys: dict[str, Value | Array] = {
        "tokenizer.ggml.tokens": Array("str", tokens), "general.license": text(said),
        "tokenizer.chat_template": text("{{ bos_token }}{{ eos_token }}" + json.dumps(said)),
        "general.sampling.temp": Value("f32", float("nan")),
    }  # fmt: skip
    found = of(rewritten(model, tmp_path / "hostile.gguf", keys))
    assert found.keys() <= {"FROM", "LICENSE", "top_p", "num_ctx", "stop"}
    assert found["FROM"] == ["./hostile.gguf"] and found.get("LICENSE", [said]) == [said]
    assert set(found.get("stop", [])) <= {said}


def test_files_that_go_with_it(model: Path, tmp_path: Path) -> None:
    projector = tmp_path / "mmproj.gguf"
    source = architectures.build("gemma3-mmproj", tmp_path)
    converter.convert(source, projector, converter.Request(**architectures.facts("gemma3-mmproj")["request"]))
    made = modelfile(model, tmp_path / "Modelfile", Extras(projector=projector))
    first, second = (each.value for each in made.instructions if each.name == "FROM")
    assert second == "./mmproj.gguf" and (tmp_path / first).samefile(model)
    with pytest.raises(UsageError, match="is no projector"):
        modelfile(model, None, Extras(projector=model))
    with pytest.raises(UsageError, match="is no adapter"):
        modelfile(model, None, Extras(adapter=model))
    with pytest.raises(UnsupportedFeature, match="give the model"):
        modelfile(projector)


def test_an_adapter(model: Path, tmp_path: Path) -> None:
    base, lora = adapters.small_base(tmp_path / "base"), tmp_path / "lora.gguf"
    matrices = adapters.lora("model.layers.0.self_attn.q_proj", 8, 8)
    converter.convert(converter.Source(adapters.written(tmp_path / "lora", matrices), base=base), lora)
    made = modelfile(model, tmp_path / "Modelfile", Extras(adapter=lora))
    assert Instruction("ADAPTER", "./lora.gguf") in made.instructions
    with pytest.raises(UnsupportedFeature, match="is one of"):
        modelfile(lora)


def test_shards_are_all_named(model: Path, tmp_path: Path) -> None:
    parts = split(model, tmp_path / "part", max_tensors=30)
    made = modelfile(parts.files[1][0], tmp_path / "Modelfile")
    names = [each.value for each in made.instructions if each.name == "FROM"]
    assert names == [f"./{path.name}" for path, _ in parts.files] and len(names) > 1


def test_a_name_that_no_modelfile_can_say(model: Path, tmp_path: Path) -> None:
    strange = tmp_path / "a\u200bb.gguf"
    strange.write_bytes(model.read_bytes())
    with pytest.raises(UsageError, match="cannot say"):
        modelfile(strange, tmp_path / "Modelfile")
    assert not (tmp_path / "Modelfile").exists()


def test_what_is_there_stays(model: Path, tmp_path: Path) -> None:
    place = tmp_path / "Modelfile"
    place.write_text("mine", "utf-8")
    with pytest.raises(OutputExists):
        modelfile(model, place)
    with pytest.raises(UnsupportedFeature, match="a Modelfile is of GGUF"):
        modelfile(KJV, place)
    assert place.read_text("utf-8") == "mine"


def test_a_package_says_the_same(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    made, found = pack(model, tmp_path / "store", "ollama"), of(model)
    layers = {
        blob.part.media_type.rpartition(".")[2]: (tmp_path / f"store/blobs/sha256-{blob.sha256}").read_bytes()
        for blob in made.layers
    }
    assert [layers["template"].decode()] == found["TEMPLATE"] and [layers["license"].decode()] == found["LICENSE"]
    assert json.loads(layers["params"]) == {
        "temperature": 0.8, "top_p": 0.95, "num_ctx": 256, "stop": found["stop"]
    }  # fmt: skip


def test_the_command(model: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["modelfile", str(model)]) == 0
    printed = capfdbinary.readouterr().out.decode()
    assert read(printed)[0].name == "FROM" and main(["modelfile", str(model), str(tmp_path / "Modelfile")]) == 0
    assert main(["modelfile", str(model), str(tmp_path / "Modelfile")]) == OutputExists.exit_code
    capfdbinary.readouterr()
    assert main(["modelfile", str(model), "--json"]) == 0
    said = json.loads(capfdbinary.readouterr().out)
    assert said["modelfile"] == printed and said["path"] is None
