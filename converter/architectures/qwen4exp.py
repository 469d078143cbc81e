"""Qwen3.8-Flash-Next: Qwen3.5's blocks with several residual streams in place of norms, an indexer where there is
attention, and a table of n-grams that one block adds (PLE).

The numbers by which n-grams are hashed are tensors in a folder and keys in a GGUF, which has the table as one.
Source: the reference converter's Qwen4ExpTextModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import MROPE, OTHER_INPUTS, ROPE_BUFFERS, TOP_TENSORS, G, H
from converter.architectures.qwen import EXPERT_WIDTHS, MOE_HPARAMS
from converter.architectures.qwen_next import (
    ALIASES,
    GATED_ATTENTION,
    HYBRID,
    MIXTURE,
    N_LAYER,
    SAID_ANYWAY,
    SECTIONS,
    TILED,
)
from converter.architectures.qwen_vl import INTERLEAVED
from converter.architectures.spec import (
    Architecture,
    HFClass,
    HParam,
    T,
    amended,
    before,
    only_when,
    without,
)
from converter.architectures.styles import BPE
from converter.architectures.traits import Relation, Traits
from converter.tensors.ops import Add, Reshape, Split

STREAMS = "n_stream * n_embd"
TOKEN_MIX, EXPERT_MIX = H + "attn_hyper_connection.", H + "mlp_hyper_connection."
HEAD_MIX = "model.hyper_connection_mixer."
INDEXER, CHOICE = H + "self_attn.indexer.", G + "indexer."
PLE, TABLE = H + "ple.", "model.layers.{ple_block}.ple.ple_embedding."
GRAMS = "len(ple_blocks) > 0"
HASHED = "model.layers.{block}.ple.ple_embedding."
ROWS = "ngram_embedding.shard_0.weight"

CONNECTIONS = (
    T(TOKEN_MIX + "hc_norm.weight", G + "hc_attn_norm.weight", Add(1.0), shape=(STREAMS,)),
    T(TOKEN_MIX + "input_mix_weight_down.weight", G + "hc_attn_down.weight", shape=("low_rank", STREAMS)),
    T(TOKEN_MIX + "input_mix_weight_up.weight", G + "hc_attn_up.weight", shape=(STREAMS, "low_rank")),
    T(TOKEN_MIX + "block_inject_weight.weight", G + "hc_attn_inject.weight", shape=("n_stream", STREAMS)),
    T(EXPERT_MIX + "hc_norm.weight", G + "hc_ffn_norm.weight", Add(1.0), shape=(STREAMS,)),
    T(EXPERT_MIX + "input_mix_weight_down.weight", G + "hc_ffn_down.weight", shape=("low_rank", STREAMS)),
    T(EXPERT_MIX + "input_mix_weight_up.weight", G + "hc_ffn_up.weight", shape=(STREAMS, "low_rank")),
    T(EXPERT_MIX + "block_inject_weight.weight", G + "hc_ffn_inject.weight", shape=("n_stream", STREAMS)),
    T(HEAD_MIX + "hc_norm.weight", "output_hc_norm.weight", Add(1.0), shape=(STREAMS,)),
    T(HEAD_MIX + "input_mix_weight_down.weight", "output_hc_down.weight", shape=("low_rank", STREAMS)),
    T(HEAD_MIX + "input_mix_weight_up.weight", "output_hc_up.weight", shape=(STREAMS, "low_rank")),
)
INDEX = (
    T(
        INDEXER + "index_qk_proj.weight", (CHOICE + "q_proj.weight", CHOICE + "k_proj.weight"),
        Split(0, ("n_head_indexer", 1)), shape=("(n_head_indexer + 1) * k_indexer", "n_embd"),
    ),
    T(INDEXER + "q_layernorm.weight", CHOICE + "q_norm.weight", Add(1.0), shape=("k_indexer",)),
    T(INDEXER + "k_layernorm.weight", CHOICE + "k_norm.weight", Add(1.0), shape=("k_indexer",)),
)  # fmt: skip
BLOCK_OF_GRAMS = (
    T(PLE + "key_proj.weight", G + "ple_key.weight", shape=(STREAMS, "ple_width")),
    T(PLE + "value_proj.weight", G + "ple_value.weight", shape=("n_embd", "ple_width")),
    T(PLE + "norm_key.weight", G + "ple_norm_key.weight", Add(1.0), shape=(STREAMS,)),
    T(PLE + "norm_query.weight", G + "ple_norm_query.weight", Add(1.0), shape=(STREAMS,)),
    T(PLE + "norm_conv.weight", G + "ple_norm_conv.weight", Add(1.0), shape=(STREAMS,)),
    T(
        PLE + "conv1d.weight", G + "ple_conv1d.weight", Reshape((STREAMS, 1, "row"), (STREAMS, "row")),
        shape=(STREAMS, 1, "ple_kernel"),
    ),
)
N_GRAMS = (
    T(TABLE + ROWS, "per_layer_token_embd.weight", shape=("n_row_gram", "row_gram")),
    T(TABLE + "layer_multipliers", (), said="multipliers", shape=("n_gram",)),
    T(TABLE + "ngram_heads_offsets", (), said="gram_offsets", shape=("(n_gram - 1) * heads_gram",)),
    T(TABLE + "ngram_heads_vocab_sizes", (), said="gram_sizes", shape=("(n_gram - 1) * heads_gram",)),
)

ARCHITECTURES = (
    Architecture(
        gguf="qwen4exp",
        hf=(
            HFClass("Qwen4ExpForCausalLM", "qwen4_exp_text", facts={"n_nextn_said": 0}),
            HFClass("Qwen4ExpForConditionalGeneration", "qwen4_exp", when="0", facts={"n_nextn_said": 0}),
        ),
        hparams=(
            *amended(before("rope_theta", MROPE, MOE_HPARAMS), **N_LAYER, **SAID_ANYWAY, n_ff={"required": False}),
            *EXPERT_WIDTHS,
            *amended(
                HYBRID,
                kinds={
                    "default": "'indexed_attention' if (block + 1) % interval == 0 else 'linear_attention'",
                    "back": "'linear_attention' if recurrent else 'indexed_attention'",
                },
            ),
            SECTIONS,
            HParam("n_stream", ("hc_count",), ("hyper_connection.count",), required=True),
            HParam("low_rank", ("hc_lowrank",), ("hyper_connection.low_rank",), required=True),
            HParam("n_head_indexer", ("indexer_n_heads",), ("attention.indexer.head_count",), default=0),
            HParam("k_indexer", ("indexer_head_dim",), ("attention.indexer.key_length",), default=0),
            HParam("top_k_indexer", ("indexer_budget",), ("attention.indexer.top_k",), default=0),
            HParam(
                "ratios", (), ("attention.compress_ratios",), "i32[]", per_block=True, always=True,
                default="0 if recurrent else ratio",
            ),
            HParam("ratio", ("indexer_compress_ratio",), (), default=0, back="max(ratios)"),
            HParam("indexer_kv", ("indexer_kv_heads",), (), default=1, stated=True),
            # Blocks with n-grams, which config.json counts from 1.
            HParam(
                "ple_blocks", (), ("ple.layers",), "i32[]", default="where(is_ple)", always=True, back="numbers('')",
            ),
            HParam("n_gram", ("ngram_size",), ("ple.ngram_size",), when=GRAMS),
            HParam("heads_gram", ("heads_per_ngram",), ("ple.heads_per_ngram",), when=GRAMS),
            HParam("ple_kernel", ("ple_conv_kernel_size",), ("ple.conv_kernel",), when=GRAMS),
            HParam(
                "ple_eos", (), ("ple.eos_token_id",), default="first(eos) if len(eos) == 1 else eos[len(eos) - 1]",
                follows="eos", always=True, when=GRAMS,
            ),
            HParam("ple_image", ("image_token_id",), ("ple.image_token_id",), when=GRAMS),
            HParam(
                "row_gram", (), ("embedding_length_per_layer_input",), always=True, when=GRAMS,
                default="ple_width // ((n_gram - 1) * heads_gram)",
            ),
            HParam(
                "multipliers", (), ("ple.layer_multipliers",), "u64[]", always=True,
                default=f"values_in('{HASHED}layer_multipliers', ple_block)",
            ),
            HParam(
                "gram_offsets", (), ("ple.head_offsets",), "u64[]", always=True,
                default=f"values_in('{HASHED}ngram_heads_offsets', ple_block)",
            ),
            HParam(
                "gram_sizes", (), ("ple.head_vocab_sizes",), "u64[]", always=True,
                default=f"values_in('{HASHED}ngram_heads_vocab_sizes', ple_block)",
            ),
            HParam(
                "is_ple", (), (), "bool[]", per_block=True, default="block + 1 in ple_ids", back="block in ple_blocks",
            ),
            HParam("ple_ids", ("ple_layer_ids",), (), "u32[]", default="numbers('')", back="where(is_ple, 1)"),
            HParam("ple_block", (), (), default="first(ple_blocks) if len(ple_blocks) > 0 else 0"),
            HParam("eos", ("eos_token_id",), (), "u32 or i32[]", back="ple_eos", follows="ple_eos"),
            HParam(
                "ple_width", ("ple_embed_dim",), (), default="n_embd",
                back=f"row_gram * (n_gram - 1) * heads_gram if {GRAMS} else n_embd",
            ),
            # The table is as long as what is hashed into it, and it lies in one piece on the way back.
            HParam(
                "n_row_gram", (), (), default=f"shape('{HASHED}{ROWS}', 0, ple_block)",
                back="shape('per_layer_token_embd.weight', 0)",
            ),
            HParam("gram_base", ("ngram_vocab_size_base",), (), default=0, back="first(gram_sizes)", when=GRAMS),
            HParam(
                "gram_unit", ("make_ngram_vocab_size_divisible_by",), (), default=128, when=GRAMS,
                back="128 if round_up(sum(gram_sizes), 128) == n_row_gram else n_row_gram",
            ),
            HParam("out_gate", ("output_gate_type",), (), "str", default="'silu'", back="'sigmoid'", stated=True),
            HParam("n_piece", ("split_ngram_parts",), (), default=1, back=1, when=GRAMS),
        ),
        tensors=(
            *without(TOP_TENSORS, "output_norm.weight"),
            *CONNECTIONS,
            *MIXTURE,
            *only_when("not recurrent", GATED_ATTENTION),
            *only_when("not recurrent and n_head_indexer > 0", INDEX),
            *only_when("recurrent", TILED),
            *only_when("is_ple", BLOCK_OF_GRAMS),
            *only_when(GRAMS, N_GRAMS),
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, "mtp.{rest}"),
        aliases=ALIASES,
        traits=Traits(
            BPE,
            built_in={**INTERLEAVED, "layer_types": ("linear_attention", "full_attention", "indexed_attention")},
            runtime=(
                Relation(
                    "out_gate == 'sigmoid'", "out_gate",
                    "output_gate_type: runtimes pass linear attention through a sigmoid, whatever the config says",
                ),
            ),
        ),
    ),
)  # fmt: skip
