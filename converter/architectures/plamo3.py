"""PLaMo 3: norms before and after, stored less what they begin with; a window in all blocks but one of each period.

Source: the reference converter's Plamo3Model; the authors' configuration class.
"""

from converter.architectures.common import DECODER_HPARAMS, NORM, VOCAB, Q
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, SlidingWindow, Traits
from converter.tensors.ops import Add

B, G = "model.layers.layers.{block}.", "blk.{block}."
DEFAULTS = {
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "head_dim": 128, "max_position_embeddings": 2048,
    "num_key_value_heads": 4, "intermediate_size": 13312,
}
OF_MLP = 0.08944271909999159  # 5 to the power of -3/2, which the norm behind the feed-forward part begins with

ARCHITECTURES = (
    Architecture(
        gguf="plamo3",
        hf=(
            HFClass("Plamo3ForCausalLM", "plamo3", DEFAULTS),
            HFClass("PLaMo3ForCausalLM", "plamo3", DEFAULTS, when="0"),
        ),
        hparams=(
            *before(
                "rms_eps",
                (HParam("rope_theta_swa", ("rope_local_theta",), ("rope.freq_base_swa",), "f32"),),
                amended(
                    DECODER_HPARAMS,
                    rope_type={
                        "default": "'yarn' if scale_said != 1 else 'default'", "back": "'default'", "always": True,
                    },
                    rope_factor={"default": "scale_said", "always": True},
                    rope_n_ctx_orig={"default": "n_ctx_said", "always": True},
                    yarn_beta_fast={"default": 32.0, "always": True},
                    yarn_beta_slow={"default": 1.0, "always": True},
                ),
            ),
            VOCAB,
            HParam("window", ("window_size", "sliding_window"), ("attention.sliding_window",)),
            HParam(
                "period", ("sliding_window_pattern",), ("attention.sliding_window_pattern",), "u32 or bool[]",
            ),
            # How often the context is longer than that of the training.
            HParam(
                "scale_said", ("rope_scaling_factor",), (), "f32", default=1.0,
                back="rope_factor if rope_type == 'yarn' else 1.0",
            ),
            HParam(
                "n_ctx_said", ("initial_context_length",), (), default="n_ctx",
                back="rope_n_ctx_orig if rope_type == 'yarn' else n_ctx",
            ),
        ),
        tensors=(
            T("model.embed_tokens.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("model.norm.weight", "output_norm.weight", Add(1.0), shape=NORM),
            T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
            T(B + "pre_mixer_norm.weight", G + "attn_norm.weight", Add(1.0), shape=NORM),
            T(B + "post_mixer_norm.weight", G + "post_attention_norm", Add(0.2), shape=NORM),
            T(B + "pre_mlp_norm.weight", G + "ffn_norm.weight", Add(1.0), shape=NORM),
            T(B + "post_mlp_norm.weight", G + "post_ffw_norm", Add(OF_MLP), shape=NORM),
            T(
                B + "mixer.qkv_proj.weight", G + "attn_qkv.weight",
                shape=("(n_head + 2 * n_head_kv) * head_dim", "n_embd"),
            ),
            T(B + "mixer.q_norm.weight", G + "attn_q_norm.weight", Add(1.0), shape=("head_dim",)),
            T(B + "mixer.k_norm.weight", G + "attn_k_norm.weight", Add(1.0), shape=("head_dim",)),
            T(B + "mixer.o_proj.weight", G + "attn_output.weight", shape=("n_embd", Q)),
            T(B + "mlp.gate_up_proj.weight", G + "ffn_up.weight", shape=("2 * n_ff", "n_embd")),
            T(B + "mlp.down_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
        ),
        traits=Traits(BPE, window=SlidingWindow(8), decoder=Decoder()),
    ),
)  # fmt: skip
