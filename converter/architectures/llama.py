"""Llama 1 to 3, Mistral, Mixtral: one GGUF architecture, `llama`; Arcee and SmolLM3.

Source: the reference converter's LlamaModel, ArceeModel, SmolLM3Model; transformers' configuration classes for the
defaults.
"""

from converter.architectures.common import (
    ATTENTION_BIAS,
    ATTENTION_INTERLEAVED,
    DENSE_FFN,
    LLAMA3_ROPE_FREQS,
    LLAMA_HPARAMS,
    MLP_BIAS,
    NORM_TENSORS,
    NOT_CAUSAL,
    OTHER_INPUTS,
    POOLING,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, before, only_when, without
from converter.architectures.styles import GLM4, LLAMA
from converter.architectures.traits import Decoder, Encoder, Relation, Traits
from converter.tensors.ops import Split

MOE = H + "block_sparse_moe."
EXPERT = MOE + "experts.{expert}."
DEFAULTS = {
    "num_key_value_heads": "num_attention_heads", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "head_dim": "hidden_size // num_attention_heads", "max_position_embeddings": 2048,
}
ARCEE_DEFAULTS = {"num_key_value_heads": "num_attention_heads", "head_dim": "hidden_size // num_attention_heads"}

# What Janus has for making images.
JANUS = (
    "model.aligner.{rest}", "model.vqmodel.{rest}", "model.generation_embeddings.{rest}",
    "model.generation_aligner.{rest}", "model.generation_head.{rest}", "model.connector.{rest}",
)

ARCHITECTURES = (
    Architecture(
        gguf="llama",
        hf=(
            HFClass("LlamaForCausalLM", "llama", DEFAULTS, when="n_expert == 0"),
            HFClass(
                "MixtralForCausalLM",
                "mixtral",
                when="n_expert > 0",
            ),
            HFClass(
                "MistralForCausalLM",
                "mistral",
                when="0",
            ),
            HFClass("LLaMAForCausalLM", "llama", DEFAULTS, when="0"),
            HFClass("LlamaModel", "llama", DEFAULTS, when="0", head=False),
            HFClass("IQuestCoderForCausalLM", "iquestcoder", DEFAULTS, when="0"),
            HFClass("InternLM3ForCausalLM", "internlm3", DEFAULTS, when="0"),
            # The text models of these.
            HFClass("LlavaForConditionalGeneration", "llava", DEFAULTS, when="0"),
            HFClass("VoxtralForConditionalGeneration", "voxtral", DEFAULTS, when="0"),
            HFClass("JanusForConditionalGeneration", "janus", DEFAULTS, when="0"),
            HFClass(
                "Sarashina2VisionForCausalLM", "sarashina2_vision", DEFAULTS, when="0",
                ignore=("norm.weight", "norm.bias"),
            ),
            HFClass("GlmasrModel", "Glmasr", DEFAULTS, when="0", tokenizer=GLM4),
            HFClass("VLlama3ForCausalLM", "vllama3", {**DEFAULTS, "num_attention_heads": 32}, when="0"),
        ),
        hparams=(*LLAMA_HPARAMS, ATTENTION_BIAS, MLP_BIAS),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION_INTERLEAVED,
            *only_when("n_expert == 0", DENSE_FFN),
            T(MOE + "gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd"), when="n_expert > 0"),
            T(EXPERT + "w1.weight", G + "ffn_gate_exps.weight", shape=("n_ff", "n_embd"), when="n_expert > 0"),
            T(EXPERT + "w2.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff"), when="n_expert > 0"),
            T(EXPERT + "w3.weight", G + "ffn_up_exps.weight", shape=("n_ff", "n_embd"), when="n_expert > 0"),
            LLAMA3_ROPE_FREQS,
            # transformers 5 can also save a layer's experts in two tensors.
            T(
                H + "mlp.experts.gate_up_proj", (G + "ffn_gate_exps.weight", G + "ffn_up_exps.weight"),
                Split(1, (1, 1)), shape=("n_expert", "2 * n_ff", "n_embd"), when="n_expert > 0", read_only=True,
            ),
            T(
                H + "mlp.experts.down_proj", G + "ffn_down_exps.weight",
                shape=("n_expert", "n_embd", "n_ff"), when="n_expert > 0", read_only=True,
            ),
            T(
                H + "mlp.gate.weight", G + "ffn_gate_inp.weight",
                shape=("n_expert", "n_embd"), when="n_expert > 0", read_only=True,
            ),
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, *JANUS),
        aliases=(("llm.{rest}", "{rest}"), ("model.text_model.{rest}", "model.{rest}"), *TEXT_MODEL_ALIASES),
        traits=Traits(
            LLAMA,
            large="n_layer == 80 and n_head != n_head_kv",
            relations=(Relation("n_rot // 2 * 2 == n_rot", "n_rot", "is odd, and rotations take pairs"),),
            decoder=Decoder(weights_norm=True),
        ),
    ),
    Architecture(
        gguf="llama-embed",
        hf=(HFClass("LlamaBidirectionalModel", "llama_bidirec", {**DEFAULTS, "is_causal": False}, head=False),),
        hparams=(*before("rope_type", (NOT_CAUSAL,), LLAMA_HPARAMS), ATTENTION_BIAS, MLP_BIAS),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION_INTERLEAVED, *DENSE_FFN, LLAMA3_ROPE_FREQS),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(LLAMA, large="n_layer == 80 and n_head != n_head_kv", encoder=Encoder()),
    ),
    Architecture(
        gguf="arcee",
        hf=(HFClass("ArceeForCausalLM", "arcee", ARCEE_DEFAULTS),),
        hparams=(*LLAMA_HPARAMS, ATTENTION_BIAS, MLP_BIAS, POOLING),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION_INTERLEAVED,
            *without(DENSE_FFN, G + "ffn_gate.weight", G + "ffn_gate.bias"),
            LLAMA3_ROPE_FREQS,
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(LLAMA, built_in={"hidden_act": ("relu2",)}, decoder=Decoder("relu2")),
    ),
    Architecture(
        gguf="smollm3",
        hf=(HFClass("SmolLM3ForCausalLM", "smollm3"),),
        hparams=(
            *LLAMA_HPARAMS,
            # The runtime rotates three blocks of four.
            HParam(
                "rotates", ("no_rope_layers",), (), "u32[]",
                default="1 if (block + 1) % 4 else 0", back="1 if (block + 1) % 4 else 0", per_block=True,
            ),
            ATTENTION_BIAS,
            MLP_BIAS,
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION_INTERLEAVED, *DENSE_FFN, LLAMA3_ROPE_FREQS),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(LLAMA, decoder=Decoder(rotates="rotates")),
    ),
)
