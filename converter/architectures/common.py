"""Rows that most decoder-only models share."""

from converter.architectures.spec import DENSE, HEAD, HParam, T, TensorRule, amended, pair
from converter.architectures.traits import Relation
from converter.tensors.ops import Rope

H, G = "model.layers.{block}.", "blk.{block}."
Q, KV = "n_head * head_dim", "n_head_kv * head_dim"

# Rows that many write, where the order is their own.
N_VOCAB = HParam("n_vocab", ("vocab_size",), required=True)
N_ROT = HParam("n_rot", (), ("rope.dimension_count",), default="head_dim", always=True)
N_ROT_OF_HEAD = HParam("n_rot", (), ("rope.dimension_count",), default="int(head_dim * partial)", always=True)
PARTIAL_OF_HEAD = HParam("partial", ("rope.partial_rotary_factor",), (), "f32", default=1.0, back="n_rot / head_dim")
VOCAB = HParam("vocab", (), ("vocab_size",), default="n_vocab", always=True)
HEAD_SIZE = HParam("head_dim", (), (), default="n_embd // n_head")
N_LAYER = HParam("n_layer", ("num_hidden_layers",), ("block_count",), required=True)
N_CTX = HParam("n_ctx", ("max_position_embeddings",), ("context_length",), required=True)
N_EMBD = HParam("n_embd", ("hidden_size",), ("embedding_length",), required=True)
N_FF = HParam("n_ff", ("intermediate_size",), ("feed_forward_length",), required=True)
N_HEAD = HParam("n_head", ("num_attention_heads",), ("attention.head_count",), required=True)
RMS_EPS = HParam("rms_eps", ("rms_norm_eps",), ("attention.layer_norm_rms_epsilon",), "f32", required=True)
NORM_EPS = HParam("norm_eps", ("layer_norm_epsilon",), ("attention.layer_norm_epsilon",), "f32", required=True)

# Latent attention (MLA): the width of what heads share, of a row of the cache, and of a head's keys and values.
KV_LORA = HParam("kv_lora", ("kv_lora_rank",), ("attention.kv_lora_rank",), required=True)
K_CACHE = HParam("k_cache", (), ("attention.key_length",), default="kv_lora + n_rot", always=True)
V_CACHE = HParam("v_cache", (), ("attention.value_length",), default="kv_lora", always=True)
K_MLA = HParam("k_mla", (), ("attention.key_length_mla",), default="k_nope + n_rot", always=True)
V_MLA = HParam("v_mla", ("v_head_dim",), ("attention.value_length_mla",), required=True)

# In the order in which the reference converter writes the keys.
DECODER_HPARAMS = (
    HParam("n_layer", ("num_hidden_layers", "n_layers", "n_layer"), ("block_count",), required=True),
    HParam("n_ctx", ("max_position_embeddings", "n_ctx", "n_positions"), ("context_length",)),
    HParam("n_embd", ("hidden_size", "n_embd", "dim"), ("embedding_length",), required=True),
    HParam("n_ff", ("intermediate_size", "n_inner", "hidden_dim"), ("feed_forward_length",), required=True),
    HParam("n_head", ("num_attention_heads", "n_head", "n_heads"), ("attention.head_count",), required=True),
    HParam("n_head_kv", ("num_key_value_heads", "n_kv_heads"), ("attention.head_count_kv",), default="n_head"),
    HParam(
        "rope_type", ("rope.rope_type",), ("rope.scaling.type",), "str", default="'default'",
        values=(("linear", "linear"), ("yarn", "yarn"), ("longrope", "longrope"), ("su", "longrope")),
    ),
    HParam(
        "rope_factor", ("rope.factor",), ("rope.scaling.factor",), "f32",
        when="rope_type == 'linear' or rope_type == 'yarn'",
    ),
    HParam(
        "rope_n_ctx_orig", ("rope.original_max_position_embeddings",), ("rope.scaling.original_context_length",),
        when="rope_type == 'yarn'",
    ),
    HParam(
        "yarn_ext_factor", ("rope.extrapolation_factor",), ("rope.scaling.yarn_ext_factor",), "f32",
        when="rope_type == 'yarn'",
    ),
    HParam(
        "yarn_attn_factor", ("rope.attention_factor", "rope.attn_factor"), ("rope.scaling.yarn_attn_factor",), "f32",
        when="rope_type == 'yarn'",
    ),
    HParam(
        "yarn_beta_fast", ("rope.beta_fast",), ("rope.scaling.yarn_beta_fast",), "f32", when="rope_type == 'yarn'"
    ),
    HParam(
        "yarn_beta_slow", ("rope.beta_slow",), ("rope.scaling.yarn_beta_slow",), "f32", when="rope_type == 'yarn'"
    ),
    HParam("rope_theta", ("rope.rope_theta",), ("rope.freq_base",), "f32"),
    HParam("rms_eps", ("rms_norm_eps", "norm_eps"), ("attention.layer_norm_rms_epsilon",), "f32"),
    HParam(
        "n_expert", ("num_local_experts", "num_experts", "n_routed_experts"), ("expert_count",), default=0
    ),
    HParam(
        "n_expert_used", ("num_experts_per_tok", "num_experts_per_token", "top_k_experts"), ("expert_used_count",),
        default=0,
    ),
    HParam(
        "head_dim", ("head_dim",), ("attention.key_length", "attention.value_length"), default="n_embd // n_head"
    ),
    N_VOCAB,
)

# Sizes of the parts of a head that rotate by time, height and width; the GGUF has a fourth.
MROPE = (
    HParam(
        "mrope_sections", ("rope.mrope_section",), (), "u32[]", default="numbers('')",
        back="resized(rope_sections, min(3, len(rope_sections)))",
    ),
    HParam(
        "rope_sections", (), ("rope.dimension_sections",), "i32[]", always=True,
        default="resized(mrope_sections, 4 if len(mrope_sections) > 0 else 0)", back="numbers('')",
    ),
)

# Of the architectures whose converter in the reference is Llama's.
LLAMA_HPARAMS = (
    *amended(DECODER_HPARAMS, n_vocab={"gguf": ("vocab_size",)}),
    N_ROT,
)
# Of those whose norms subtract the mean.
LAYER_NORM_HPARAMS = amended(
    DECODER_HPARAMS,
    rms_eps={
        "name": "norm_eps", "config": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
        "gguf": ("attention.layer_norm_epsilon",),
    },
)

# Of those whose frequencies are never scaled: the other row reads what UNSCALED amends.
NO_SCALING = HParam("scaling", (), ("rope.scaling.type",), "str", default="'none'", back="'none'", always=True)
UNSCALED = {"rope_type": {"back": "scaling if scaling != 'none' else 'default'"}}

# Where the runtime's own base is not written.
ROPE_THETA_UNUSUAL = HParam(
    "rope_theta", ("rope.rope_theta",), ("rope.freq_base",), "f32", when="rope_theta != 10000"
)
# A part of each head that rotates, as a part of the width.
PARTIAL_OF_WIDTH = (
    HParam("n_rot", (), ("rope.dimension_count",), default="int(partial * n_embd) // n_head", always=True),
    HParam("partial", ("rope.partial_rotary_factor",), (), "f32", default=1.0, back="n_rot * n_head / n_embd"),
)
PARALLEL_RESIDUAL = HParam("parallel", ("use_parallel_residual",), ("use_parallel_residual",), "bool", always=True)

# That each token sees all others; that it does not is the rule and is not written.
NOT_CAUSAL = HParam("causal", ("is_causal",), ("attention.causal",), "bool", default=True, values=((False, False),))

# A window, and which blocks slide over it: all but the last of every `period`, where config.json does not list them.
WINDOW_PATTERN = (
    HParam("window", ("sliding_window",), ("attention.sliding_window",), default=0, null=0),
    HParam(
        "slides", (), ("attention.sliding_window_pattern",), "bool[]", per_block=True, always=True,
        default="layer_types == 'sliding_attention'", when="window > 0",
    ),
    HParam(
        "layer_types", ("layer_types",), (), "str[]", per_block=True,
        default="'sliding_attention' if window > 0 and (block + 1) % 4 > 0 else 'full_attention'",
        back="'sliding_attention' if window > 0 and slides else 'full_attention'",
    ),
)

# Config entries that no key says: on the way back, the tensors that are there do.
ATTENTION_BIAS = HParam(
    "attention_bias", ("attention_bias",), (), "bool", default=False,
    back="present('blk.0.attn_q.bias') or present('blk.0.attn_output.bias')",
)
MLP_BIAS = HParam("mlp_bias", ("mlp_bias",), (), "bool", default=False, back="present('blk.0.ffn_down.bias')")

# How the vectors of a text's tokens become one, as modules.json of sentence-transformers says it.
POOLING = HParam(
    "pooling", ("/pooling.mode",), ("pooling_type",), values=(("mean", 1), ("cls", 2), ("lasttoken", 3)), closed=True
)

# The dense layers after it, in the folders of these names, and what of them the runtime takes for granted.
IDENTITY = "torch.nn.modules.linear.Identity"
HAS_DENSE = f"{DENSE} > 0"
DENSE_LAYERS = (
    HParam(DENSE, default=0, back="present('dense_2.weight')"),
    HParam("dense_2_in", ("/dense.2_Dense.in_features",), ("dense_2_feat_in",), when=HAS_DENSE),
    HParam("dense_2_out", ("/dense.2_Dense.out_features",), ("dense_2_feat_out",), when=HAS_DENSE),
    HParam("dense_3_in", ("/dense.3_Dense.in_features",), ("dense_3_feat_in",), when=HAS_DENSE),
    HParam("dense_3_out", ("/dense.3_Dense.out_features",), ("dense_3_feat_out",), when=HAS_DENSE),
    HParam("dense_2_act", ("/dense.2_Dense.activation_function",), (), "str", default=f"'{IDENTITY}'", when=HAS_DENSE),
    HParam("dense_3_act", ("/dense.3_Dense.activation_function",), (), "str", default=f"'{IDENTITY}'", when=HAS_DENSE),
)
DENSE_TENSORS = (
    T("2_Dense/linear.weight", "dense_2.weight", shape=("dense_2_out", "dense_2_in"), when=DENSE, optional=True),
    T("3_Dense/linear.weight", "dense_3.weight", shape=("dense_3_out", "dense_3_in"), when=DENSE, optional=True),
)
DENSE_LINEAR = Relation(
    f"not {DENSE} or (dense_2_act == '{IDENTITY}' and dense_3_act == '{IDENTITY}')", DENSE,
    "the runtime applies no function after dense layers: its vectors differ",
)

# What a classifier tells apart. Two names that transformers fills in say nothing where there is no classifier.
LABELS = HParam(
    "labels", ("id2label",), ("classifier.output_labels",), "str[]", numbered=True,
    when=f"len(labels) != 2 or first(labels) != 'LABEL_0' or {HEAD}",
)

# What must hold between them in every architecture; those that an architecture lacks are passed over.
RELATIONS = (
    Relation("n_embd > 0", "n_embd", "must be positive"),
    Relation("n_head > 0", "n_head", "must be positive"),
    Relation("n_head_kv > 0", "n_head_kv", "must be positive"),
    Relation("n_head // n_head_kv * n_head_kv == n_head", "n_head_kv", "does not divide the number of heads"),
    Relation("n_expert_used <= n_expert", "n_expert_used", "is more than there are experts"),
    Relation(
        "n_expert == 0 or n_expert_used > 0", "n_expert_used", "must be positive where there are experts"
    ),
)

# How the text model's tensors are called alone, and inside a model for several kinds of input.
TEXT_MODEL_ALIASES = (
    ("{rest}", "model.{rest}"),
    ("model.language_model.{rest}", "model.{rest}"),
    ("language_model.{rest}", "{rest}"),
)

# Encoders and projectors of other inputs, which another file has.
OTHER_INPUTS = (
    "visual.{rest}", "model.visual.{rest}", "audio_tower.{rest}", "talker.{rest}", "token2wav.{rest}",
    "code2wav.{rest}", "audio_encoder.{rest}",
    "vision_tower.{rest}", "model.vision_tower.{rest}", "vision_model.{rest}", "model.vision_model.{rest}",
    "model.audio_tower.{rest}", "multi_modal_projector.{rest}", "model.multi_modal_projector.{rest}",
)

# Saved by old versions of transformers; the runtime computes them.
ROPE_BUFFERS = (H + "self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")

NORM = ("n_embd",)

TOP_TENSORS: tuple[TensorRule, ...] = (
    T("model.embed_tokens.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
    T("model.norm.weight", "output_norm.weight", shape=NORM),
    T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
)

NORM_TENSORS: tuple[TensorRule, ...] = (
    T(H + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
    T(H + "post_attention_layernorm.weight", G + "ffn_norm.weight", shape=NORM),
)

# Attention as Hugging Face stores it; for runtimes that rotate halves (ggml's rope type NEOX).
ATTENTION: tuple[TensorRule, ...] = (
    *pair(H + "self_attn.q_proj", G + "attn_q", shape=(Q, "n_embd")),
    *pair(H + "self_attn.k_proj", G + "attn_k", shape=(KV, "n_embd")),
    *pair(H + "self_attn.v_proj", G + "attn_v", shape=(KV, "n_embd")),
    *pair(H + "self_attn.o_proj", G + "attn_output", shape=("n_embd", Q)),
)

# The same for ggml's rope type NORM, which rotates neighbours.
ATTENTION_INTERLEAVED: tuple[TensorRule, ...] = (
    *pair(H + "self_attn.q_proj", G + "attn_q", Rope("n_head"), shape=(Q, "n_embd")),
    *pair(H + "self_attn.k_proj", G + "attn_k", Rope("n_head_kv"), shape=(KV, "n_embd")),
    *ATTENTION[4:],
)

QK_NORM: tuple[TensorRule, ...] = (
    T(H + "self_attn.q_norm.weight", G + "attn_q_norm.weight", shape=("head_dim",)),
    T(H + "self_attn.k_norm.weight", G + "attn_k_norm.weight", shape=("head_dim",)),
)

DENSE_FFN: tuple[TensorRule, ...] = (
    *pair(H + "mlp.gate_proj", G + "ffn_gate", shape=("n_ff", "n_embd")),
    *pair(H + "mlp.up_proj", G + "ffn_up", shape=("n_ff", "n_embd")),
    *pair(H + "mlp.down_proj", G + "ffn_down", shape=("n_embd", "n_ff")),
)

# The divisors of Llama 3.1's frequencies.
LLAMA3_ROPE_FREQS = T(
    (), "rope_freqs.weight", generator="llama3_rope_freqs", when="rope_type == 'llama3'", shape=("head_dim // 2",)
)

# Factors for each frequency, within the context of the training and beyond it.
LONGROPE = "rope_type == 'longrope' or rope_type == 'su'"
LONGROPE_FACTORS = T(
    (), ("rope_factors_long.weight", "rope_factors_short.weight"),
    generator="longrope_factors", when=LONGROPE, shape=("n_rot // 2",),
)
