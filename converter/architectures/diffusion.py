"""Dream, LLaDA and RND1: language models that see both ways and fill in masked tokens.

Source: the reference converter's DreamModel, LLaDAModel, LLaDAMoEModel and RND1Model; the configuration
classes that the models bring along for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    DECODER_HPARAMS,
    DENSE_FFN,
    HEAD_SIZE,
    KV,
    N_ROT,
    NORM,
    NORM_TENSORS,
    POOLING,
    QK_NORM,
    ROPE_BUFFERS,
    TOP_TENSORS,
    G,
    Q,
)
from converter.architectures.qwen import EXPERT_WIDTHS, EXPERTS, MOE_HPARAMS
from converter.architectures.spec import Architecture, HFClass, HParam, T
from converter.architectures.styles import BPE, DREAM, LLADA
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import Rope

B = "model.transformer.blocks.{block}."
NOT_CAUSAL = HParam("causal", (), ("attention.causal",), "bool", default=False, always=True)

ARCHITECTURES = (
    Architecture(
        gguf="dream",
        hf=(
            HFClass(
                "DreamModel",
                "Dream",
                {
                    "num_key_value_heads": "num_attention_heads", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "max_position_embeddings": 32768,
                },
            ),
        ),
        hparams=(
            *DECODER_HPARAMS,
            POOLING,
            NOT_CAUSAL,
            HParam("mask_id", ("mask_token_id",), ("/tokenizer.ggml.mask_token_id",)),
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *DENSE_FFN),
        ignore=ROPE_BUFFERS,
        traits=Traits(DREAM, decoder=Decoder()),
    ),
    Architecture(
        gguf="llada",
        hf=(HFClass("LLaDAModelLM", "llada", {"rms_norm_eps": 1e-5, "rope_theta": 10000.0}),),
        hparams=(
            HParam("n_layer", ("n_layers", "num_hidden_layers"), ("block_count",), required=True),
            HParam("n_ctx", ("max_sequence_length",), ("context_length",), default=4096, always=True),
            HParam("n_head", ("n_heads", "num_attention_heads"), ("attention.head_count",), required=True),
            HParam("n_head_kv", ("n_kv_heads", "num_key_value_heads"), ("attention.head_count_kv",), default="n_head"),
            HParam("rope_theta", ("rope.rope_theta",), ("rope.freq_base",), "f32"),
            HParam("rms_eps", ("rms_norm_eps",), ("attention.layer_norm_rms_epsilon",), "f32"),
            POOLING,
            HParam("n_vocab", ("vocab_size",), ("vocab_size",), required=True),
            N_ROT,
            HParam("n_embd", ("d_model", "hidden_size"), ("embedding_length",), required=True),
            HParam("n_ff", ("mlp_hidden_size",), ("feed_forward_length",), required=True),
            NOT_CAUSAL,
            HParam("shifts", (), ("/diffusion.shift_logits",), "bool", default=False, always=True),
            HEAD_SIZE,
        ),
        tensors=(
            T("model.transformer.wte.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("model.transformer.ln_f.weight", "output_norm.weight", shape=NORM),
            T(
                "model.transformer.ff_out.weight", "output.weight",
                shape=("n_vocab", "n_embd"), tied_to="token_embd.weight",
            ),
            T(B + "attn_norm.weight", G + "attn_norm.weight", shape=NORM),
            T(B + "ff_norm.weight", G + "ffn_norm.weight", shape=NORM),
            T(B + "q_proj.weight", G + "attn_q.weight", Rope("n_head"), shape=(Q, "n_embd")),
            T(B + "k_proj.weight", G + "attn_k.weight", Rope("n_head_kv"), shape=(KV, "n_embd")),
            T(B + "v_proj.weight", G + "attn_v.weight", shape=(KV, "n_embd")),
            T(B + "attn_out.weight", G + "attn_output.weight", shape=("n_embd", Q)),
            T(B + "ff_proj.weight", G + "ffn_gate.weight", shape=("n_ff", "n_embd")),
            T(B + "up_proj.weight", G + "ffn_up.weight", shape=("n_ff", "n_embd")),
            T(B + "ff_out.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
        ),
        traits=Traits(LLADA, decoder=Decoder()),
    ),
    Architecture(
        gguf="llada-moe",
        hf=(
            HFClass("LLaDAMoEModelLM", "llada_moe", {"rms_norm_eps": 1e-5, "rope_theta": 10000.0}),
            HFClass("LLaDAMoEModel", "llada_moe", {"rms_norm_eps": 1e-5, "rope_theta": 10000.0}, when="0"),
        ),
        hparams=(
            *MOE_HPARAMS,
            HParam("n_ff_exp", ("expert_intermediate_size",), ("expert_feed_forward_length",), required=True),
            HParam("mask_id", (), ("/tokenizer.ggml.mask_token_id",), default=156895, always=True),
            NOT_CAUSAL,
            HParam("shifts", (), ("/diffusion.shift_logits",), "bool", default=False, always=True),
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *QK_NORM, *EXPERTS),
        ignore=ROPE_BUFFERS,
        traits=Traits(BPE, built_in={"norm_topk_prob": (False,)}, decoder=Decoder(weights_norm=False)),
    ),
    Architecture(
        gguf="rnd1",
        hf=(HFClass("RND1", "rnd1", {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}),),
        hparams=(
            *MOE_HPARAMS,
            *EXPERT_WIDTHS,
            NOT_CAUSAL,
            HParam("mask_id", ("mask_token_id",), ("/tokenizer.ggml.mask_token_id",)),
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *QK_NORM, *EXPERTS),
        ignore=ROPE_BUFFERS,
        traits=Traits(BPE, decoder=Decoder(weights_norm=True)),
    ),
)
