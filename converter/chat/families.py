"""Chat template families as data, and their templates in Ollama's language.

Most are turns: what stands around the content of each role, and what begins the reply. The others are written out.
`{bos}` and `{eos}` are the model's own tokens. Written from what the published Jinja templates of the models render;
tests compare both on fixed conversations, and with Go itself.

Left out: gpt-oss (harmony), Gemma 4, Cohere's tool prompts, Kimi, GLM 4.6 and other templates that reorder or trim
messages, or need the ids of tool calls, which Go's templates get no hold of.
"""

from __future__ import annotations

from typing import NamedTuple

CONTENT, SYSTEM = "{content}", "{system}"


class Family(NamedTuple):
    """A way to write a conversation.

    Attributes:
        name: as Ollama or the first model calls it.
        user, assistant: a turn, with `{content}`; `{system}` in the user's is the place of a system text.
        reply: what begins the answer.
        system: a system text, with `{content}`.
        place: where it stands: "own" in a turn of its own, "first" or "last" in that user's turn, "lead" before all
            turns whether there is one or not.
        again: what begins every user's turn but the first.
        stop: texts that end an answer beside the model's own tokens.
        go: the whole template, in the place of turns.
    """

    name: str
    user: str = ""
    assistant: str = ""
    reply: str = ""
    system: str = ""
    place: str = "own"
    again: str = ""
    stop: tuple[str, ...] = ()
    go: str = ""

    def template(self, bos: str = "", eos: str = "") -> str:
        """The template in Ollama's language."""
        return (self.go or _of_turns(self)).replace("{bos}", bos).replace("{eos}", eos)


_FIRST = "le $i 1"  # the first user's turn has number 0, or 1 after a system text
_LAST = "eq (len (slice $.Messages $i)) 1"


def _of_turns(family: Family) -> str:
    """Ranges over messages and writes each as its role has it."""
    content = "{{ .Content }}"
    system = family.system.replace(CONTENT, content if family.place == "own" else "{{ $.System }}")
    joined = {"first": _FIRST, "last": _LAST}.get(family.place)
    within = _if(f"and $.System ({joined})", system) if joined else ""
    turns = {"system": system} if family.place == "own" and system else {}
    again = _if("gt $i 1", family.again) if family.again else ""
    turns["user"] = again + family.user.replace(SYSTEM, within).replace(CONTENT, content)
    turns["assistant"] = family.assistant.replace(CONTENT, content)
    cases = "{{ else ".join(f'if eq .Role "{role}" }}}}{text}' for role, text in turns.items())
    lead = system if family.place == "lead" else ""
    return lead + "{{ range $i, $_ := .Messages }}{{ " + cases + "{{ end }}{{ end }}" + family.reply


def _if(condition: str, text: str) -> str:
    return "{{ if " + condition + " }}" + text + "{{ end }}"


def _roles(before: str, between: str, after: str) -> dict[str, str]:
    """Turns that differ in the name of the role alone."""
    made = {role: f"{before}{role}{between}{CONTENT}{after}" for role in ("system", "user", "assistant")}
    return {**made, "reply": f"{before}assistant{between}"}


# ------------------------------------------------------------------------------ tools and thinking, written out
# Tools and arguments print themselves as JSON.

_QWEN_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>{{ range .Tools }}
{{ . }}{{ end }}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def _qwen(assistant: str, reply: str) -> str:
    """ChatML with tools; results that follow each other stand in one turn of the user's."""
    return (
        "{{ if or .System .Tools }}<|im_start|>system\n{{ .System }}"
        "{{ if .Tools }}{{ if .System }}\n\n{{ end }}" + _QWEN_TOOLS + "{{ end }}<|im_end|>\n{{ end }}"
        '{{ $before := "" }}{{ $asked := -1 }}'
        '{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}{{ $asked = $i }}{{ end }}{{ end }}'
        "{{ range $i, $m := .Messages }}"
        '{{ if and (eq $before "tool") (ne .Role "tool") }}<|im_end|>\n{{ end }}'
        '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant' + assistant + "<|im_end|>\n"
        '{{ else if eq .Role "tool" }}{{ if ne $before "tool" }}<|im_start|>user{{ end }}\n'
        "<tool_response>\n{{ .Content }}\n</tool_response>{{ end }}{{ $before = .Role }}{{ end }}"
        '{{ if eq $before "tool" }}<|im_end|>\n{{ end }}<|im_start|>assistant\n' + reply
    )


_QWEN_CALL = '<tool_call>\n{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n</tool_call>'
_QWEN_2_5 = _qwen(
    "{{ if or .Content (not .ToolCalls) }}\n{{ .Content }}{{ end }}{{ range .ToolCalls }}\n" + _QWEN_CALL + "{{ end }}",
    "",
)
_QWEN_3 = _qwen(
    "\n{{ if and .Thinking (gt $i $asked) }}<think>\n{{ .Thinking }}\n</think>\n\n{{ end }}{{ .Content }}"
    "{{ range $j, $_ := .ToolCalls }}{{ if or (gt $j 0) $m.Content }}\n{{ end }}" + _QWEN_CALL + "{{ end }}",
    "{{ if and .IsThinkSet (not .Think) }}<think>\n\n</think>\n\n{{ end }}",
)
_LLAMA_3_1 = (
    "<|start_header_id|>system<|end_header_id|>\n\n{{ if .Tools }}Environment: ipython\n{{ end }}"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{{ .System }}<|eot_id|>"
    '{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}<|start_header_id|>user<|end_header_id|>\n\n'
    "{{ if and $.Tools (le $i 1) }}Given the following functions, please respond with a JSON for a function call "
    "with its proper arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n{{ range $.Tools }}{{ . }}\n\n{{ end }}{{ end }}{{ .Content }}<|eot_id|>"
    '{{ else if eq .Role "assistant" }}<|start_header_id|>assistant<|end_header_id|>\n\n'
    '{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}{{ end }}'
    "{{ .Content }}<|eot_id|>"
    '{{ else if eq .Role "tool" }}<|start_header_id|>ipython<|end_header_id|>\n\n{{ json .Content }}<|eot_id|>'
    "{{ end }}{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n"
)

# ---------------------------------------------------------------------------------------------- the families
# The first that fits is taken: those with tools come before those without.

_IM = ("<|im_start|>", "<|im_end|>")
_HEADER = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_INST = ("[INST]", "[/INST]")
_TURN = ("<start_of_turn>", "<end_of_turn>")
_PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_TULU = ("<|system|>", "<|user|>", "<|assistant|>")
_USER, _REPLY = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"  # with wide bars
_COHERE = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>")

FAMILIES = (
    Family("qwen3", go=_QWEN_3, stop=_IM),
    Family("qwen2.5", go=_QWEN_2_5, stop=_IM),
    Family("chatml", **_roles("<|im_start|>", "\n", "<|im_end|>\n"), stop=_IM),
    Family("phi-4", **_roles("<|im_start|>", "<|im_sep|>", "<|im_end|>"), stop=(*_IM, "<|im_sep|>")),
    Family("llama3.1", go=_LLAMA_3_1, stop=_HEADER),
    Family(
        "llama3", **_roles("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"), stop=_HEADER
    ),
    Family(
        "llama2", "[INST] {system}{content} [/INST]", " {content} {eos}", system="<<SYS>>\n{content}\n<</SYS>>\n\n",
        place="first", again="{bos}", stop=(*_INST, "<<SYS>>", "<</SYS>>"),
    ),
    Family(
        "llama2-once", "[INST] {system}{content} [/INST]", " {content} {eos}",
        system="<<SYS>>\n{content}\n<</SYS>>\n\n", place="first", stop=(*_INST, "<<SYS>>", "<</SYS>>"),
    ),
    Family("mistral-v0.1", "[INST] {content} [/INST]", "{content}{eos} ", stop=_INST),
    Family(
        "mistral-v0.2", "[INST] {system}{content} [/INST]", "{content}{eos}", system="{content}\n\n", place="first",
        stop=_INST,
    ),
    Family(
        "mistral-v1", " [INST] {system}{content} [/INST]", " {content}{eos}", system="{content}\n\n", place="first",
        stop=_INST,
    ),
    Family(
        "mistral-v3", "[INST] {system}{content}[/INST]", " {content}{eos}", system="{content}\n\n", place="last",
        stop=_INST,
    ),
    Family(
        "mistral-v3-first", "[INST] {system}{content}[/INST]", " {content}{eos}", system="{content}\n\n",
        place="first", stop=_INST,
    ),
    Family(
        "mistral-v3-tekken", "[INST]{system}{content}[/INST]", "{content}{eos}", system="{content}\n\n",
        place="last", stop=_INST,
    ),
    Family(
        "mistral-v3-tekken-first", "[INST]{system}{content}[/INST]", "{content}{eos}", system="{content}\n\n",
        place="first", stop=_INST,
    ),
    Family(
        "mistral-v7", "[INST] {content}[/INST]", " {content}{eos}",
        system="[SYSTEM_PROMPT] {content}[/SYSTEM_PROMPT]", stop=(*_INST, "[SYSTEM_PROMPT]"),
    ),
    Family(
        "mistral-v7-tekken", "[INST]{content}[/INST]", "{content}{eos}",
        system="[SYSTEM_PROMPT]{content}[/SYSTEM_PROMPT]", stop=(*_INST, "[SYSTEM_PROMPT]"),
    ),
    Family(
        "gemma", "<start_of_turn>user\n{system}{content}<end_of_turn>\n",
        "<start_of_turn>model\n{content}<end_of_turn>\n", "<start_of_turn>model\n", "{content}\n\n", "first",
        stop=_TURN,
    ),
    Family("phi-3", **_roles("<|", "|>\n", "<|end|>\n"), stop=_PHI),
    Family(
        "phi-3-mini", "<|user|>\n{content}<|end|>\n", "<|assistant|>\n{content}<|end|>\n", "<|assistant|>\n", stop=_PHI
    ),
    Family(
        "starchat", "<|user|>\n{content}<|end|>\n", "<|assistant|>\n{content}<|end|>\n", "<|assistant|>",
        "<|system|>\n{content}<|end|>\n", stop=_PHI,
    ),
    Family("phi-4-mini", **_roles("<|", "|>", "<|end|>"), stop=_PHI),
    Family("zephyr", **_roles("<|", "|>\n", "{eos}\n"), stop=_TULU),
    Family(
        "tulu", "<|user|>\n{content}\n", "<|assistant|>\n{content}{eos}\n", "<|assistant|>\n",
        "<|system|>\n{content}\n", stop=_TULU,
    ),
    Family(
        "vicuna", "USER: {content}\n", "ASSISTANT: {content}{eos}\n", "ASSISTANT:", "{content}\n\n", stop=("USER:",)
    ),
    Family(
        "vicuna-1.1", "USER: {content} ", "ASSISTANT: {content}{eos}", "ASSISTANT:", "{content} ", stop=("USER:",)
    ),
    Family(
        "orca-vicuna", "USER: {content}\n", "ASSISTANT: {content}{eos}\n", "ASSISTANT:", "SYSTEM: {content}\n",
        stop=("USER:", "SYSTEM:"),
    ),
    Family(
        "alpaca", "### Instruction:\n{content}\n\n", "### Response:\n{content}{eos}\n\n", "### Response:\n",
        "{content}\n\n", stop=("### Instruction:", "### Response:"),
    ),
    Family(
        "deepseek-coder", "### Instruction:\n{content}\n", "### Response:\n{content}\n<|EOT|>\n", "### Response:",
        "{content}", "lead", stop=("### Instruction:", "<|EOT|>"),
    ),
    Family(
        "solar", "### User:\n{content}\n\n", "### Assistant:\n{content}", "### Assistant:\n",
        "### System:\n{content}\n\n", stop=("### System:", "### User:", "### Assistant:"),
    ),
    Family(
        "openchat", "GPT4 Correct User: {content}<|end_of_turn|>", "GPT4 Correct Assistant: {content}<|end_of_turn|>",
        "GPT4 Correct Assistant:", "GPT4 Correct System: {content}<|end_of_turn|>", stop=("<|end_of_turn|>",),
    ),
    Family(
        "deepseek-v2", "User: {content}\n\n", "Assistant: {content}{eos}", "Assistant:", "{content}\n\n",
        stop=("User:", "Assistant:"),
    ),
    Family(
        "deepseek-v3", _USER + "{content}", _REPLY + "{content}{eos}", _REPLY, "{content}", "lead",
        stop=(_USER, _REPLY),
    ),
    Family(
        "deepseek-v3.1", _USER + "{content}", _REPLY + "<think></think>{content}{eos}",
        _REPLY + "<think></think>", "{content}", "lead", stop=(_USER, _REPLY),
    ),
    Family(
        "nemotron", "<extra_id_1>User\n{content}\n", "<extra_id_1>Assistant\n{content}\n", "<extra_id_1>Assistant\n",
        "<extra_id_0>System\n{{ if $.System }}{content}\n{{ end }}\n", "lead", stop=("<extra_id_1>",),
    ),
    Family(
        "command-r", "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{content}<|END_OF_TURN_TOKEN|>", stop=_COHERE,
    ),
    Family(
        "granite", **_roles("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>\n"),
        stop=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ),
    Family(
        "exaone", "[|user|]{content}\n", "[|assistant|]{content}[|endofturn|]\n", "[|assistant|]",
        "[|system|]{content}[|endofturn|]\n", "lead", stop=("[|endofturn|]",),
    ),
    Family(
        "exaone-2", "[|user|]{content}\n", "[|assistant|]{content}[|endofturn|]\n", "[|assistant|]",
        "[|system|]{content}[|endofturn|]\n", stop=("[|endofturn|]",),
    ),
    Family(
        "glm-4", "<|user|>\n{content}", "<|assistant|>\n{content}", "<|assistant|>", "<|system|>\n{content}",
        stop=_TULU,
    ),
    Family(
        "megrez", **_roles("<|role_start|>", "<|role_end|>", "<|turn_end|>"), stop=("<|turn_end|>", "<|role_start|>")
    ),
    Family(
        "ling", "<role>HUMAN</role>{content}", "<role>ASSISTANT</role>{content}", "<role>ASSISTANT</role>",
        "<role>SYSTEM</role>{content}", stop=("<role>", "<|role_end|>"),
    ),
    Family("seed", **_roles("{bos}", "\n", "{eos}"), stop=()),
)  # fmt: skip
