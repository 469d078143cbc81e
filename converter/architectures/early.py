"""Early relatives of Llama whose code comes with the weights: XVERSE, InternLM 2, Qwen, Arctic.

Source: the reference converter's XverseModel, InternLM2Model, QwenModel and ArcticModel; the configuration classes that
the models bring along for the defaults.
"""

from converter.architectures.baichuan import LAYOUT
from converter.architectures.common import (
    ATTENTION_INTERLEAVED,
    DECODER_HPARAMS,
    DENSE_FFN,
    LLAMA_HPARAMS,
    N_ROT,
    NORM,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
    Q,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, before, only_when, pair
from converter.architectures.styles import ARCTIC, BPE, INTERNLM2, SPM
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import ROW, At, Reshape, Rope, Split

# InternLM 2: each key head has its queries, its key and its value together.
GROUP = "n_head // n_head_kv"
ONE_OF_GROUP = Reshape(("n_head_kv", 1, "head_dim", ROW), ("n_head_kv * head_dim", ROW))
GROUPED = (
    Reshape(("(n_head + 2 * n_head_kv) * head_dim", ROW), ("n_head_kv", f"{GROUP} + 2", "head_dim", ROW)),
    Split(1, (GROUP, 1, 1)),
    At(0, Reshape(("n_head_kv", GROUP, "head_dim", ROW), (Q, ROW))),
    At(1, ONE_OF_GROUP),
    At(2, ONE_OF_GROUP),
    At(0, Rope("n_head")),
    At(1, Rope("n_head_kv")),
)

B = "transformer.h.{block}."
MOE, RESIDUAL = H + "block_sparse_moe.", H + "residual_mlp."
EXPERT = MOE + "experts.{expert}."

ARCHITECTURES = (
    Architecture(
        gguf="xverse",
        hf=(HFClass("XverseForCausalLM", "xverse", {"rms_norm_eps": 1e-6}),),
        hparams=(
            *DECODER_HPARAMS,
            LAYOUT,
            N_ROT,
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION_INTERLEAVED, *DENSE_FFN),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(SPM, decoder=Decoder()),
    ),
    Architecture(
        gguf="internlm2",
        hf=(HFClass("InternLM2ForCausalLM", "internlm2", {"rms_norm_eps": 1e-6}),),
        hparams=(
            *DECODER_HPARAMS,
            HParam("bias", ("bias",), (), "bool", default=False, back="present('blk.0.attn_output.bias')"),
        ),
        tensors=(
            T("model.tok_embeddings.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("model.norm.weight", "output_norm.weight", shape=NORM),
            T("output.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
            T(H + "attention_norm.weight", G + "attn_norm.weight", shape=NORM),
            T(H + "ffn_norm.weight", G + "ffn_norm.weight", shape=NORM),
            T(
                H + "attention.wqkv.weight", (G + "attn_q.weight", G + "attn_k.weight", G + "attn_v.weight"), *GROUPED,
                shape=("(n_head + 2 * n_head_kv) * head_dim", "n_embd"),
            ),
            *pair(H + "attention.wo", G + "attn_output", shape=("n_embd", Q)),
            T(H + "feed_forward.w1.weight", G + "ffn_gate.weight", shape=("n_ff", "n_embd")),
            T(H + "feed_forward.w2.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
            T(H + "feed_forward.w3.weight", G + "ffn_up.weight", shape=("n_ff", "n_embd")),
        ),
        ignore=(H + "attention.rotary_emb.inv_freq",),
        traits=Traits(INTERNLM2, decoder=Decoder()),
    ),
    Architecture(
        gguf="qwen",
        hf=(HFClass("QWenLMHeadModel", "qwen", {"layer_norm_epsilon": 1e-6, "max_position_embeddings": 8192}),),
        hparams=(
            *before(
                "n_expert",
                (HParam("norm_eps", ("layer_norm_epsilon",), ("attention.layer_norm_epsilon",), "f32"),),
                DECODER_HPARAMS,
            ),
            # Which the runtime reads.
            HParam(
                "rms", (), ("attention.layer_norm_rms_epsilon",), "f32", default="norm_eps", always=True,
            ),
        ),
        tensors=(
            T("transformer.wte.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("transformer.ln_f.weight", "output_norm.weight", shape=NORM),
            T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd")),
            T(B + "ln_1.weight", G + "attn_norm.weight", shape=NORM),
            T(B + "ln_2.weight", G + "ffn_norm.weight", shape=NORM),
            *pair(B + "attn.c_attn", G + "attn_qkv", shape=("3 * n_embd", "n_embd"), bias=True),
            T(B + "attn.c_proj.weight", G + "attn_output.weight", shape=("n_embd", "n_embd")),
            # Its width is that of both together.
            T(B + "mlp.w1.weight", G + "ffn_up.weight", shape=("n_ff // 2", "n_embd")),
            T(B + "mlp.w2.weight", G + "ffn_gate.weight", shape=("n_ff // 2", "n_embd")),
            T(B + "mlp.c_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff // 2")),
        ),
        ignore=("transformer.rotary_emb.inv_freq",),
        traits=Traits(BPE, decoder=Decoder(rms=True)),
    ),
    Architecture(
        gguf="arctic",
        hf=(
            HFClass(
                "ArcticForCausalLM",
                "arctic",
                {"rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 1},
                constants={"moe_layer_frequency": 1, "parallel_attn_mlp_res": True},
            ),
        ),
        hparams=LLAMA_HPARAMS,
        tensors=(
            *TOP_TENSORS,
            NORM_TENSORS[0],
            *ATTENTION_INTERLEAVED,
            T(H + "residual_layernorm.weight", G + "ffn_norm.weight", shape=NORM),
            T(RESIDUAL + "w1.weight", G + "ffn_gate.weight", shape=("n_embd", "n_embd")),
            T(RESIDUAL + "w2.weight", G + "ffn_down.weight", shape=("n_embd", "n_embd")),
            T(RESIDUAL + "w3.weight", G + "ffn_up.weight", shape=("n_embd", "n_embd")),
            *only_when(
                "n_expert > 0",
                (
                    T(H + "post_attention_layernorm.weight", G + "ffn_norm_exps.weight", shape=NORM),
                    T(MOE + "gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
                    T(EXPERT + "w1.weight", G + "ffn_gate_exps.weight", shape=("n_ff", "n_embd")),
                    T(EXPERT + "w2.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff")),
                    T(EXPERT + "w3.weight", G + "ffn_up_exps.weight", shape=("n_ff", "n_embd")),
                ),
            ),
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(ARCTIC, decoder=Decoder(weights_norm=True)),
    ),
)  # fmt: skip
