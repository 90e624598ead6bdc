"""The families: which tokenizer goes with a template, and what must come out of it on 4 March 2026."""

from __future__ import annotations

from typing import Any


LLAMA3 = {"kind": "llama3", "bos": "<|begin_of_text|>", "adds_bos": True}
CHATML = {"kind": "llama3", "bos": None, "eos": "<|im_end|>", "special": "<|im_start|>", "added": "<think> </think>"}
SPM = {"kind": "spm", "bos": "<s>", "eos": "</s>", "adds_bos": True}
GEMMA = {"kind": "gemma", "bos": "<bos>", "eos": "<eos>", "adds_bos": True, "special": "<start_of_turn> <end_of_turn>"}
MISTRAL = {**SPM, "kind": "llama3", "special": "[INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT]"}
B, E = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
DEEPSEEK = {
    "kind": "llama3",
    "bos": B,
    "eos": E,
    "adds_bos": True,
    "added": "<｜User｜> <｜Assistant｜> <think> </think>",
}
L3 = {**LLAMA3, "eos": "<|eot_id|>", "special": "<|start_header_id|> <|end_header_id|>"}
H, HE, EOT, U, A = "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", "user", "assistant"
PHI = {"special": "<|user|> <|assistant|> <|system|> <|end|>"}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "llama-2": SPM,
    **dict.fromkeys(("llama-3", "llama-3.1", "llama-3.2"), L3),
    "llama-4": {**LLAMA3, "eos": "<|eot|>", "special": "<|header_start|> <|header_end|>"},
    **dict.fromkeys(("qwen-2", "qwen-2.5", "qwen-3", "qwen-3.5", "smollm-3", "tool-use"), CHATML),
    **dict.fromkeys(("gemma-2", "gemma-3"), GEMMA),
    "phi-3": {"kind": "spm", "bos": "<s>", "eos": "<|endoftext|>", "rstrip": True, **PHI},
    "phi-3-small": {"kind": "llama3", "bos": "<|endoftext|>", "eos": "<|endoftext|>", **PHI},
    "phi-4": {"kind": "llama3", "bos": "<|endoftext|>", "eos": "<|im_end|>", "special": "<|im_start|> <|im_sep|>"},
    "mistral-v0.1": SPM,
    "mistral-v0.3": {**MISTRAL, "kind": "gemma"},
    **dict.fromkeys(("mistral-nemo", "mistral-small"), MISTRAL),
    "yi-1.5": {**SPM, "bos": "<|startoftext|>", "eos": "<|im_end|>", "special": "<|im_start|>"},
    **dict.fromkeys(("deepseek-v2", "deepseek-v3", "deepseek-r1"), DEEPSEEK),
    "command-r": {
        **{"kind": "gpt2", "bos": "<BOS_TOKEN>", "eos": "<|END_OF_TURN_TOKEN|>", "adds_bos": True},
        "special": "<|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|>",
    },
    "olmo-2": {"kind": "llama3", "bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "gpt-oss": {
        **{"kind": "llama3", "bos": "<|startoftext|>", "eos": "<|return|>"},
        "special": "<|start|> <|message|> <|end|> <|channel|> <|call|>",
    },
    **dict.fromkeys(("vicuna", "hermes-1", "zephyr", "llava"), SPM),
    "falcon-3": {"kind": "gpt2", "bos": None, "eos": "<|endoftext|>", **PHI},
    "granite-3": {
        "kind": "gpt2",
        "bos": None,
        "eos": "<|end_of_text|>",
        "special": "<|start_of_role|> <|end_of_role|>",
    },
    "glm-4": {
        "kind": "llama3",
        "bos": None,
        "eos": "<|endoftext|>",
        "special": "[gMASK] <sop> <|user|> <|assistant|>",
    },
    "nemotron": {**SPM, "kind": "llama3", "special": "<extra_id_0> <extra_id_1>"},
    "internlm-2": {**SPM, "special": "<|im_start|> <|im_end|>"},
}
COHERE = {"kind": "gpt2", "bos": "<BOS_TOKEN>", "eos": "<|END_OF_TURN_TOKEN|>", "adds_bos": True}
COHERE_MARKS = "<|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|>"
# Formats whose answers hold marks of their own, or have no mark at their end
TOKENIZERS |= {
    "command-r7b": {
        **COHERE,
        "special": f"{COHERE_MARKS} <|START_RESPONSE|> <|END_RESPONSE|> <|START_THINKING|> <|END_THINKING|>",
    },
    "cohere2-moe": {**COHERE, "special": f"{COHERE_MARKS} <|START_TEXT|> <|END_TEXT|> <|START_THINKING|> <|END_THINKING|>"},
    "kimi-k3": {"kind": "llama3", "bos": None, "eos": "<|end_of_msg|>", "special": "<|open|> <|close|> <|sep|>"},
    "solar-open": {"kind": "llama3", "bos": None, "eos": "<|flush|>",
                   "added": "<|begin|> <|end|> <|think|> <|content|> <|tool_calls|>"},
    "muse": {"kind": "llama3", "bos": "<|bos|>", "eos": "<|eot|>", "special": "<|start|> <|message|> <|eom|>"},
    "functionary-2": {**SPM, "special": "<|from|> <|recipient|> <|content|> <|stop|>"},
    "functionary-3": L3,
    "hunyuan": {"kind": "llama3", "bos": "<|hy_begin|>", "eos": "<|hy_eos|>", "special": "<|hy_User|> <|hy_Assistant|>"},
    "apertus": {"kind": "llama3", "bos": "<s>", "eos": "<|assistant_end|>",
                "special": "<|assistant_start|> <|user_start|> <|user_end|> <|system_start|> <|system_end|> "
                "<|inner_prefix|> <|inner_suffix|> <|tools_prefix|> <|tools_suffix|>"},
    "minicpm-3": {"kind": "llama3", "bos": None, "eos": "<|im_end|>",
                  "special": "<|im_start|> <|thought_start|> <|thought_end|> <|tool_call_start|>"},
    "magistral": {**MISTRAL, "special": f"{MISTRAL['special']} [THINK] [/THINK]"},
    "falcon": {"kind": "gpt2", "bos": None, "eos": "<|endoftext|>"},
    "solar": SPM,
    "chatqa": LLAMA3 | {"eos": "<|end_of_text|>", "adds_bos": False},
}  # fmt: skip
IM, IE, T = "<|im_start|>", "<|im_end|>\n", "<|START_OF_TURN_TOKEN|>"
L31 = f"<|begin_of_text|>{H}system{HE}Knowledge ends: 2023\nToday: 04 Mar 2026\n\n"
SMOL = f"{IM}system\nDate: 4 March 2026\nMode: /think\n\n"
OSS = "<|start|>system<|message|>You are G.\nCurrent date: 2026-03-04\n\nReasoning: medium<|end|>"
R, RE = "<|start_of_role|>", "<|end_of_role|>"
# family: (pre-query text; with the system prompt "Be brief.", or the reason against it; end of the response prompt for
# "Hi"; what ends an instruction, what ends a response, first of each)
FAMILIES: dict[str, tuple[str, str, str, str, str]] = {
    "llama-2": ("<s>[INST]", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n", "[INST] Hi [/INST]", "[/INST]", "</s>"),
    "llama-3": (
        f"<|begin_of_text|>{H}user{HE}",
        f"<|begin_of_text|>{H}system{HE}Be brief.{EOT}{H}user{HE}",
        f"Hi{EOT}{H}{A}{HE}",
        EOT,
        EOT,
    ),
    "llama-3.1": (f"{L31}{EOT}{H}user{HE}", f"{L31}Be brief.{EOT}{H}user{HE}", f"Hi{EOT}{H}{A}{HE}", EOT, EOT),
    "llama-3.2": (f"{L31}{EOT}{H}user{HE}", f"{L31}Be brief.{EOT}{H}user{HE}", f"Hi{EOT}{H}{A}{HE}", EOT, EOT),
    "llama-4": (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\n",
        "<|begin_of_text|><|header_start|>system<|header_end|>\n\nBe brief.<|eot|><|header_start|>user<|header_end|>\n\n",
        "Hi<|eot|><|header_start|>assistant<|header_end|>\n\n",
        "<|eot|>",
        "<|eot|>",
    ),
    "qwen-2": (
        f"{IM}system\nYou are of help.{IE}{IM}user\n",
        f"{IM}system\nBe brief.{IE}{IM}user\n",
        f"Hi{IE}{IM}assistant\n",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "qwen-2.5": (
        f"{IM}system\nYou are Q, made by A. You are of help.{IE}{IM}user\n",
        f"{IM}system\nBe brief.{IE}{IM}user\n",
        f"Hi{IE}{IM}assistant\n",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "qwen-3": (
        f"{IM}user\n",
        f"{IM}system\nBe brief.{IE}{IM}user\n",
        f"{IE}{IM}assistant\n",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "qwen-3.5": (
        f"{IM}user\n",
        f"{IM}system\nBe brief.{IE}{IM}user\n",
        f"Hi{IE}{IM}assistant\n<think>\n",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "gemma-2": (
        "<bos><start_of_turn>user\n",
        "!No system role here",
        "user\nHi<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
        "<end_of_turn>",
    ),
    "gemma-3": (
        "<bos><start_of_turn>user\n",
        "<bos><start_of_turn>user\nBe brief.\n\n",
        "user\nHi<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
        "<end_of_turn>",
    ),
    "phi-3": (
        "<|user|>\n",
        "<|system|>\nBe brief.<|end|>\n<|user|>\n",
        "<|user|>\nHi<|end|>\n<|assistant|>\n",
        "<|end|>",
        "<|end|>",
    ),
    "phi-3-small": (
        "<|endoftext|><|user|>\n",
        "<|endoftext|><|system|>\nBe brief.<|end|>\n<|user|>\n",
        "<|user|>\nHi<|end|>\n<|assistant|>\n",
        "<|end|>",
        "<|end|>",
    ),
    "phi-4": (
        "<|im_start|>user<|im_sep|>",
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>",
        "Hi<|im_end|><|im_start|>assistant<|im_sep|>",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "mistral-v0.1": ("<s>[INST]", "!Roles must alternate user and assistant", "[INST] Hi [/INST]", "[/INST]", "</s>"),
    "mistral-v0.3": ("<s>[INST]", "<s>[INST] Be brief.\n\n", "[INST] Hi[/INST]", "[/INST]", "</s>"),
    "mistral-nemo": ("<s>[INST]", "<s>[INST]Be brief.\n\n", "[INST]Hi[/INST]", "[/INST]", "</s>"),
    "mistral-small": (
        "<s>[SYSTEM_PROMPT]You are S. Today is 2026-03-04.[/SYSTEM_PROMPT][INST]",
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]",
        "[INST]Hi[/INST]",
        "[/INST]",
        "</s>",
    ),
    "yi-1.5": (
        f"<|startoftext|>{IM}user\n",
        f"<|startoftext|>Be brief.{IM}user\n",
        f"{IM}user\nHi{IE}{IM}assistant\n",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "deepseek-v2": (f"{B}User:", f"{B}Be brief.\n\nUser:", "User: Hi\n\nAssistant:", "\n\nAssistant:", E),
    "deepseek-v3": (f"{B}<｜User｜>", f"{B}Be brief.<｜User｜>", "<｜User｜>Hi<｜Assistant｜>", "<｜Assistant｜>", E),
    "deepseek-r1": (
        f"{B}<｜User｜>",
        f"{B}Be brief.<｜User｜>",
        "<｜User｜>Hi<｜Assistant｜><think>\n",
        "<｜Assistant｜>",
        E,
    ),
    "command-r": (
        f"<BOS_TOKEN>{T}<|USER_TOKEN|>",
        f"<BOS_TOKEN>{T}<|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>{T}<|USER_TOKEN|>",
        f"Hi<|END_OF_TURN_TOKEN|>{T}<|CHATBOT_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
    ),
    "olmo-2": (
        "<|endoftext|><|user|>\n",
        "<|endoftext|><|system|>\nBe brief.\n<|user|>\n",
        "<|user|>\nHi\n<|assistant|>\n",
        "<|assistant|>",
        "<|endoftext|>",
    ),
    "smollm-3": (
        f"{SMOL}{IE}{IM}user\n",
        f"{SMOL}Be brief.{IE}{IM}user\n",
        f"Hi{IE}{IM}assistant\n",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "gpt-oss": (
        f"{OSS}<|start|>user<|message|>",
        f"{OSS}<|start|>developer<|message|># Instructions\n\nBe brief.<|end|><|start|>user<|message|>",
        "<|start|>user<|message|>Hi<|end|><|start|>assistant",
        "<|end|>",
        "<|return|>",
    ),
    "vicuna": (
        "<s>A talk between a user and an assistant. USER:",
        "<s>Be brief. USER:",
        " USER: Hi ASSISTANT:",
        "ASSISTANT:",
        "</s>",
    ),
    "hermes-1": (
        "<s>### Instruction:\n",
        "<s>Be brief.\n\n### Instruction:\n",
        "### Instruction:\nHi\n\n### Response:\n",
        "### Response:",
        "</s>",
    ),
    "zephyr": (
        "<s><|user|>\n",
        "<s><|system|>\nBe brief.</s>\n<|user|>\n",
        "<|user|>\nHi</s>\n<|assistant|>\n",
        "</s>",
        "</s>",
    ),
    "falcon-3": (
        "<|user|>\n",
        "<|system|>\nBe brief.\n<|user|>\n",
        "<|user|>\nHi\n<|assistant|>\n",
        "<|assistant|>",
        "<|endoftext|>",
    ),
    "granite-3": (
        f"{R}system{RE}Today: March 04, 2026.<|end_of_text|>\n{R}user{RE}",
        f"{R}system{RE}Be brief.<|end_of_text|>\n{R}user{RE}",
        f"{R}user{RE}Hi<|end_of_text|>\n{R}assistant{RE}",
        "<|end_of_text|>",
        "<|end_of_text|>",
    ),
    "glm-4": (
        "[gMASK]<sop><|user|>\n",
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\n",
        "[gMASK]<sop><|user|>\nHi<|assistant|>",
        "<|assistant|>",
        "<|endoftext|>",
    ),
    "nemotron": (
        "<s><extra_id_0>System\n\n<extra_id_1>User\n",
        "<s><extra_id_0>System\nBe brief.\n<extra_id_1>User\n",
        "<extra_id_1>User\nHi\n<extra_id_1>Assistant\n",
        "<extra_id_1>",
        "</s>",
    ),
    "internlm-2": (
        f"<s>{IM}user\n",
        f"<s>{IM}system\nBe brief.{IE}{IM}user\n",
        f"{IM}user\nHi{IE}{IM}assistant\n",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "llava": ("<s>[U]", "<s>Be brief.\n[U]", "[U] Hi [/U]", "[/U]", "</s>"),
    "tool-use": (
        f"{IM}system\nTools:{IE}{IM}user\n",
        f"{IM}system\nTools:{IE}{IM}system\nBe brief.{IE}{IM}user\n",
        f"Hi{IE}{IM}assistant\n",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "command-r7b": (
        f"<BOS_TOKEN>{T}<|USER_TOKEN|>",
        f"<BOS_TOKEN>{T}<|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>{T}<|USER_TOKEN|>",
        f"Hi<|END_OF_TURN_TOKEN|>{T}<|CHATBOT_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|END_RESPONSE|>",
    ),
    "cohere2-moe": (
        f"<BOS_TOKEN>{T}<|USER_TOKEN|><|START_TEXT|>",
        f"<BOS_TOKEN>{T}<|SYSTEM_TOKEN|><|START_TEXT|>Be brief.<|END_TEXT|><|END_OF_TURN_TOKEN|>{T}<|USER_TOKEN|><|START_TEXT|>",
        f"Hi<|END_TEXT|><|END_OF_TURN_TOKEN|>{T}<|CHATBOT_TOKEN|><|START_THINKING|>",
        "<|END_TEXT|>",
        "<|END_TEXT|>",
    ),
    "kimi-k3": (
        '<|open|>message role="user"<|sep|>',
        '<|open|>message role="system"<|sep|>Be brief.<|close|>message<|sep|><|end_of_msg|><|open|>message role="user"<|sep|>',
        '<|end_of_msg|><|open|>message role="assistant"<|sep|><|open|>think<|sep|>',
        "<|close|>",
        "<|end_of_msg|>",
    ),
    "solar-open": (
        "<|begin|>user<|content|>",
        "<|begin|>system<|content|>Be brief.<|end|><|begin|>user<|content|>",
        "Hi<|end|><|begin|>assistant",
        "<|end|>",
        "<|flush|>",
    ),
    "muse": (
        "<|bos|><|start|>user<|message|>",
        "<|bos|><|start|>system<|message|>Be brief.<|eot|><|start|>user<|message|>",
        "Hi<|eot|><|start|>assistant",
        "<|eot|>",
        "<|eot|>",
    ),
    "functionary-2": (
        "<s><|from|>user\n<|recipient|>all\n<|content|>",
        "<s><|from|>system\n<|recipient|>all\n<|content|>Be brief.\n<|from|>user\n<|recipient|>all\n<|content|>",
        "Hi\n<|from|>assistant\n<|recipient|>",
        "<|from|>",
        "<|stop|>",
    ),
    "functionary-3": (
        f"<|begin_of_text|>{H}user{HE}",
        f"<|begin_of_text|>{H}system{HE}Be brief.{EOT}{H}user{HE}",
        f"Hi{EOT}{H}{A}{HE}>>>",
        EOT,
        EOT,
    ),
    "hunyuan": (
        "<|hy_begin|><|hy_User|>",
        "<|hy_begin|>Be brief.<|hy_User|>",
        "<|hy_User|>Hi<|hy_Assistant|>",
        "<|hy_Assistant|>",
        "<|hy_eos|>",
    ),
    "apertus": (
        "<s><|user_start|>",
        "<s><|system_start|>Be brief.<|system_end|><|user_start|>",
        "Hi<|user_end|><|assistant_start|>",
        "<|user_end|>",
        "<|assistant_end|>",
    ),
    "minicpm-3": (
        f"{IM}user\n",
        f"{IM}system\nBe brief.{IE}{IM}user\n",
        f"Hi{IE}{IM}assistant\n",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "magistral": (
        "<s>[INST]",
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]",
        "[INST]Hi[/INST]",
        "[/INST]",
        "</s>",
    ),
    "falcon": ("User:", "System: Be brief.\nUser:", "User: Hi\nFalcon:", "\nFalcon:", "<|endoftext|>"),
    "solar": (
        "<s>### User:\n",
        "<s>### System:\nBe brief.\n\n### User:\n",
        "### User:\nHi\n\n### Assistant:\n",
        "### Assistant:",
        "</s>",
    ),
    "chatqa": (
        "<|begin_of_text|>System: A chat about documents.\n\nUser:",
        "<|begin_of_text|>System: A chat about documents.\n\nSystem: Be brief.\n\nUser:",
        "User: Hi\n\nAssistant:",
        "\n\nAssistant:",
        "<|end_of_text|>",
    ),
}
