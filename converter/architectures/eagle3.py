"""EAGLE-3: a draft of one block, which guesses what another model says next from three of that one's layers.

Some checkpoints have a class of their own, some say Llama; what tells them is a vocabulary of their own, a part of that
of the model they are for. Source: the reference converter's LlamaModel; llama.cpp's eagle3.cpp; the class that is
written is that of SGLang's drafts.
"""

from converter.architectures.common import (
    ATTENTION_BIAS,
    KV,
    LLAMA3_ROPE_FREQS,
    LLAMA_HPARAMS,
    MLP_BIAS,
    NORM,
    ROPE_BUFFERS,
    Q,
)
from converter.architectures.llama import DEFAULTS
from converter.architectures.spec import Architecture, HFClass, HParam, T, pair
from converter.architectures.styles import LLAMA
from converter.architectures.traits import Traits
from converter.tensors.ops import FromPlace, Rope

B, G = "midlayer.", "blk.0."
ONE_BLOCK = "n_layer == 1 and n_draft > 0"

ARCHITECTURES = (
    Architecture(
        gguf="eagle3",
        hf=(
            HFClass("LlamaForCausalLMEagle3", "llama", DEFAULTS, takes=ONE_BLOCK),
            HFClass("Eagle3LlamaForCausalLM", "llama", DEFAULTS, takes=ONE_BLOCK, when="0"),
            HFClass("Eagle3Speculator", "llama", DEFAULTS, takes=ONE_BLOCK, when="0"),
            HFClass("Eagle3DraftModel", "llama", DEFAULTS, takes=ONE_BLOCK, when="0"),
            HFClass("LlamaForCausalLM", "llama", DEFAULTS, takes=ONE_BLOCK, when="0"),
        ),
        hparams=(
            # Of the other model: how many layers it has, which of them are read, and their width.
            HParam("n_layer_base", ("/base.num_hidden_layers",)),
            HParam(
                "layers_read", ("eagle_aux_hidden_state_layer_ids",), ("target_layers",), "i32[]", per_block="3",
                default="2 if block == 0 else n_layer_base // 2 if block == 1 else n_layer_base - 3",
                follows="n_layer_base", early=True,
            ),
            HParam(
                "n_embd_base", ("target_hidden_size", "/base.hidden_size"), ("target_hidden_size",),
                default="shape('fc.weight', 1) // 3", always=True, early=True,
            ),
            HParam(
                "norm_late", ("norm_before_residual",), ("norm_before_residual",), "bool", default=False, always=True,
                early=True,
            ),
            HParam(
                "norm_first", ("norm_before_fc",), ("norm_before_fc",), "bool", default=False, always=True, early=True,
            ),
            *LLAMA_HPARAMS,
            HParam("n_draft", ("draft_vocab_size",), default=0, back="shape('output.weight', 0)"),
            ATTENTION_BIAS,
            MLP_BIAS,
        ),
        tensors=(
            T("embed_tokens.weight", "token_embd.weight", shape=("n_vocab", "n_embd"), optional=True),
            T("norm.weight", "output_norm.weight", shape=NORM),
            T(
                "lm_head.weight", "output.weight", shape=("n_draft", "n_embd"), tied_to="token_embd.weight",
                optional=True,
            ),
            T("fc.weight", "fc.weight", shape=("n_embd", "3 * n_embd_base")),
            T("input_norm.weight", "enc.output_norm.weight", shape=("3 * n_embd_base",), when="norm_first"),
            T(B + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
            T(B + "hidden_norm.weight", G + "attn_norm_2.weight", shape=NORM),
            T(B + "post_attention_layernorm.weight", G + "ffn_norm.weight", shape=NORM),
            *pair(B + "self_attn.q_proj", G + "attn_q", Rope("n_head"), shape=(Q, "2 * n_embd")),
            *pair(B + "self_attn.k_proj", G + "attn_k", Rope("n_head_kv"), shape=(KV, "2 * n_embd")),
            *pair(B + "self_attn.v_proj", G + "attn_v", shape=(KV, "2 * n_embd")),
            *pair(B + "self_attn.o_proj", G + "attn_output", shape=("n_embd", Q)),
            *pair(B + "mlp.gate_proj", G + "ffn_gate", shape=("n_ff", "n_embd")),
            *pair(B + "mlp.up_proj", G + "ffn_up", shape=("n_ff", "n_embd")),
            *pair(B + "mlp.down_proj", G + "ffn_down", shape=("n_embd", "n_ff")),
            LLAMA3_ROPE_FREQS,
            # Which token of the other vocabulary each of its own is.
            T("d2t", "d2t", FromPlace(), shape=("n_draft",), optional=True, type="I64"),
        ),
        # The same table the other way round, which says nothing more.
        ignore=(*ROPE_BUFFERS, "midlayer.self_attn.rotary_emb.inv_freq", "t2d"),
        aliases=(
            ("model.{rest}", "{rest}"), ("layers.0.{rest}", "midlayer.{rest}"),
        ),
        traits=Traits(LLAMA),
    ),
)
