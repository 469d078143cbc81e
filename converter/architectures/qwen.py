"""Qwen2 (and 2.5), Qwen3 and their mixtures of experts. No row permutation: ggml rotates halves for these.

Source: the reference converter's Qwen2Model, Qwen3Model, Qwen3MoeModel; transformers' configuration
classes for the defaults.
"""

from dataclasses import replace

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DECODER_HPARAMS,
    DENSE_FFN,
    NORM_TENSORS,
    OTHER_INPUTS,
    POOLING,
    QK_NORM,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import HEAD, Architecture, HFClass, HParam, T, amended, read_only
from converter.architectures.styles import BPE, INTERN_S1, SPM_OR_BPE
from converter.architectures.traits import Decoder, Relation, Traits
from converter.tensors.ops import Pick, Split

EXPERT = H + "mlp.experts.{expert}."
DEFAULTS = {
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32768, "num_key_value_heads": 32,
    "use_sliding_window": False, "max_window_layers": 28,
}

# KORMo calls the same norms otherwise; what comes back is a Qwen2.
KORMO_ALIASES = (
    (H + "pre_attention_layernorm.{rest}", H + "input_layernorm.{rest}"),
    (H + "pre_mlp_layernorm.{rest}", H + "post_attention_layernorm.{rest}"),
)

# transformers 4 knows these experts as `num_experts` only.
MOE_HPARAMS = amended(DECODER_HPARAMS, n_expert={"config": ("num_experts", "num_local_experts")})
EXPERT_WIDTHS = (
    HParam("n_ff_exp", ("moe_intermediate_size",), ("expert_feed_forward_length",), required=True),
    HParam("n_ff_shexp", ("shared_expert_intermediate_size",), ("expert_shared_feed_forward_length",)),
)
ROUTER = T(H + "mlp.gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd"))
ONE_BY_ONE = (
    T(EXPERT + "gate_proj.weight", G + "ffn_gate_exps.weight", shape=("n_ff_exp", "n_embd")),
    T(EXPERT + "down_proj.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff_exp")),
    T(EXPERT + "up_proj.weight", G + "ffn_up_exps.weight", shape=("n_ff_exp", "n_embd")),
)
FUSED = (
    T(
        H + "mlp.experts.gate_up_proj", (G + "ffn_gate_exps.weight", G + "ffn_up_exps.weight"),
        Split(1, (1, 1)), shape=("n_expert", "2 * n_ff_exp", "n_embd"),
    ),
    T(H + "mlp.experts.down_proj", G + "ffn_down_exps.weight", shape=("n_expert", "n_embd", "n_ff_exp")),
)
# transformers 5 can also save a layer's experts in two tensors.
EXPERTS = (ROUTER, *ONE_BY_ONE, *read_only(FUSED))
SHARED_EXPERT = (
    T(H + "mlp.shared_expert_gate.weight", G + "ffn_gate_inp_shexp.weight", shape=(1, "n_embd")),
    T(H + "mlp.shared_expert.gate_proj.weight", G + "ffn_gate_shexp.weight", shape=("n_ff_shexp", "n_embd")),
    T(H + "mlp.shared_expert.up_proj.weight", G + "ffn_up_shexp.weight", shape=("n_ff_shexp", "n_embd")),
    T(H + "mlp.shared_expert.down_proj.weight", G + "ffn_down_shexp.weight", shape=("n_embd", "n_ff_shexp")),
)

# A reranker answers yes or no; the runtime keeps the two rows of the head that say so, or the rows of a classifier.
RANKS = f"{HEAD} and reranks"
TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
RERANKER = (
    HParam("reranks", ("/reranker.is",), default=0),
    HParam("yes", ("/reranker.yes",), when="reranks > 0"),
    HParam("no", ("/reranker.no",), when="reranks > 0"),
    HParam(
        "tied", ("tie_word_embeddings",), (), "bool", default="not present('lm_head.weight')",
        back="not present('output.weight')", stated=True,
    ),
    HParam(
        HEAD, default="present('score.weight') or reranks > 0", back="present('cls.output.weight')",
    ),
    replace(
        POOLING, config=("/pooling.mode", "/reranker.pooling"), values=(*POOLING.values, ("rank", 4)),
        when=f"pooling != 'rank' or {HEAD} > 0",
    ),
    HParam(
        "answers", (), ("classifier.output_labels",), "str[]", per_block="2",
        default="'yes' if block == 0 else 'no'", when=RANKS, always=True,
    ),
    HParam(
        "labels", ("id2label",), ("classifier.output_labels",), "str[]", numbered=True, always=True,
        when=f"{HEAD} > 0 and reranks == 0",
    ),
    HParam(
        "template", (), ("/tokenizer.chat_template.rerank",), "str", default=f"'{TEMPLATE}'", when=RANKS, always=True
    ),
    HParam(
        "templates", (), ("/tokenizer.chat_templates",), "str[]", per_block="1", default="'rerank'", when=RANKS,
        always=True,
    ),
)
# One label alone is as likely as all together.
SEVERAL_LABELS = Relation(
    f"not {HEAD} or reranks or len(labels) > 1", "labels",
    "the runtime's scores are shares of all labels: of one label the share is always 1",
)
DEFAULTS_3 = {**DEFAULTS, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
CLASSIFIER = HFClass(
    "Qwen3ForSequenceClassification", "qwen3", DEFAULTS_3,
    when=f"{HEAD} > 0", head=False, facts={"pooling": "rank"},
)
ROWS_OF_HEAD = ("yes", "no")
RERANKER_TENSORS = (
    T(
        "model.embed_tokens.weight", ("token_embd.weight", "cls.output.weight"),
        Pick(ROWS_OF_HEAD, "n_vocab", beside=True), shape=("n_vocab", "n_embd"), when=f"{RANKS} and tied",
    ),
    T(
        "lm_head.weight", "cls.output.weight", Pick(ROWS_OF_HEAD, "n_vocab"), shape=("n_vocab", "n_embd"),
        when=f"{RANKS} and not tied",
    ),
    T("score.weight", "cls.output.weight", shape=("len(labels)", "n_embd"), when=f"{HEAD} and not reranks"),
    *TOP_TENSORS[:2],
    replace(TOP_TENSORS[2], when=f"not ({RANKS})"),
)

ARCHITECTURES = (
    Architecture(
        gguf="qwen2",
        hf=(
            HFClass("Qwen2ForCausalLM", "qwen2", DEFAULTS),
            HFClass("Qwen2Model", "qwen2", DEFAULTS, when="0", head=False),
            HFClass("KORMoForCausalLM", "kormo", DEFAULTS, when="0"),
            # The text models of these.
            HFClass("Qwen2AudioForConditionalGeneration", "qwen2_audio", DEFAULTS, when="0"),
            HFClass("AudioFlamingo3ForConditionalGeneration", "audioflamingo3", DEFAULTS, when="0"),
            HFClass("DotsOCRForCausalLM", "dots_ocr", DEFAULTS, when="0"),
        ),
        hparams=(*DECODER_HPARAMS, POOLING),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *DENSE_FFN),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS),
        aliases=(*TEXT_MODEL_ALIASES, *KORMO_ALIASES),
        traits=Traits(SPM_OR_BPE, large="n_layer == 80", decoder=Decoder()),
    ),
    Architecture(
        gguf="qwen2moe",
        hf=(
            HFClass(
                "Qwen2MoeForCausalLM",
                "qwen2_moe",
                DEFAULTS,
            ),
        ),
        hparams=(*MOE_HPARAMS, *EXPERT_WIDTHS),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            *EXPERTS,
            *SHARED_EXPERT,
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, built_in={"norm_topk_prob": (False,)}, decoder=Decoder(weights_norm=False)),
    ),
    Architecture(
        gguf="qwen3",
        hf=(
            CLASSIFIER,
            HFClass("Qwen3ForCausalLM", "qwen3", DEFAULTS_3),
            HFClass("Qwen3Model", "qwen3", DEFAULTS_3, when="0", head=False),
            HFClass(
                "InternS1ForConditionalGeneration", "interns1", DEFAULTS_3, when="0", takes="n_expert == 0",
                tokenizer=INTERN_S1,
            ),
            HFClass("StepVLForConditionalGeneration", "step_robotics", {**DEFAULTS_3, "head_dim": 128}, when="0"),
        ),
        hparams=(*DECODER_HPARAMS, *RERANKER, ATTENTION_BIAS),
        tensors=(*RERANKER_TENSORS, *NORM_TENSORS, *ATTENTION, *QK_NORM, *DENSE_FFN),
        ignore=(
            *ROPE_BUFFERS, *OTHER_INPUTS, "score.{rest}", "vit_large_projector.{rest}",
            "model.vit_large_projector.{rest}",
        ),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(SPM_OR_BPE, runtime=(SEVERAL_LABELS,), decoder=Decoder()),
    ),
    Architecture(
        gguf="qwen3moe",
        hf=(
            HFClass(
                "Qwen3MoeForCausalLM",
                "qwen3_moe",
                {**DEFAULTS, "num_experts": 128},
                constants={"norm_topk_prob": True},
            ),
            HFClass(
                "InternS1ForConditionalGeneration", "interns1", {**DEFAULTS, "num_experts": 128}, when="0",
                tokenizer=INTERN_S1,
            ),
        ),
        hparams=(
            *MOE_HPARAMS,
            *EXPERT_WIDTHS,
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            *QK_NORM,
            *EXPERTS,
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(SPM_OR_BPE, decoder=Decoder(weights_norm=True)),
    ),
)
