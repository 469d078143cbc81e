"""Lookups of typed key/values: what is of another kind is not there."""

from __future__ import annotations

from converter.metadata import Array, Metadata, Value, array_of, boolean, number_of, scalar_of, text, text_of, u32

KEYS: Metadata = {
    "count": u32(3), "wide": Value("u64", 1 << 40), "ratio": Value("f32", 0.5), "flag": boolean(True),
    "name": text("llama"), "latin": Value("str", b"\xe9"), "words": Array("str", ["a"]), "none": Array("i32", []),
}  # fmt: skip


def found(lookup: object, *types: str) -> dict[str, object]:
    assert callable(lookup)
    answers = {key: lookup(KEYS, key, *types) for key in (*KEYS, "missing")}
    return {key: answer for key, answer in answers.items() if answer is not None}


def test_each_lookup_sees_its_own_kind_alone() -> None:
    assert found(number_of) == {"count": 3, "wide": 1 << 40}
    assert found(number_of, "u32") == {"count": 3}
    assert found(text_of) == {"name": "llama"}
    assert found(array_of) == {"words": Array("str", ["a"]), "none": Array("i32", [])}
    assert found(array_of, "u32", "i32") == {"none": Array("i32", [])}
    assert found(scalar_of) == {
        "count": 3, "wide": 1 << 40, "ratio": 0.5, "flag": True, "name": "llama", "latin": b"\xe9"
    }  # fmt: skip


def test_entries_of_a_config_are_of_no_kind() -> None:
    config = {"hidden_size": 8, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    for lookup in (number_of, text_of, array_of, scalar_of):
        assert not any(lookup(config, key) is not None for key in config)
