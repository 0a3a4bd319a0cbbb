"""Chat templates that write what mmcl's prompts write."""

from __future__ import annotations

from typing import Any

from mmcl.errors import UserError
from mmcl.model.prompt import Prompt

_FLATTEN = """{%- set flat = namespace(messages=[]) -%}
SYSTEM
{%- for message in messages -%}
{%- if message['content'] is string -%}{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set joined = namespace(text='') -%}
{%- for part in message['content'] -%}
{%- set joined.text = joined.text + (IMAGE if part['type'] == 'image' else part['text']) -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': joined.text}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
_SYSTEM = """{%- if messages[0]['role'] != 'system' -%}
{%- set flat.messages = [{'role': 'system', 'content': TEXT}] -%}
{%- endif -%}"""
_PLAIN = """{{- BOS -}}
{%- for message in messages -%}
{{- message['content'] + (EOS if message['role'] == 'assistant' else '\\n') -}}
{%- endfor -%}"""


def template_of(prompt: Prompt, image: str) -> str:
    """A Jinja template over messages whose content is text, or parts of `{type: image}` and `{type: text, text: ...}`.

    Args:
        prompt: of the model.
        image: what stands for an image.

    Raises:
        UserError: the tokenizer has several templates, none of which is the default.
    """
    tokenizer: Any = prompt.tokenizer
    system = _SYSTEM.replace("TEXT", repr(prompt.system)) if prompt.system and prompt.style == "chat" else ""
    start = _FLATTEN.replace("SYSTEM", system).replace("IMAGE", repr(image))
    if prompt.style == "plain":
        eos = tokenizer.decode([prompt.eos])
        return start + _PLAIN.replace("BOS", repr(tokenizer.decode(list(prompt.bos)))).replace("EOS", repr(eos))
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise UserError("the tokenizer has no default chat template", where="model.prompt.style", hint="use `plain`")
    return start + template
