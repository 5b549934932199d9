"""Chat templates in the forms that public models have, and conversations for them."""

from __future__ import annotations

from typing import Any


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


TEMPLATES = {
    "chatml": """\
{%- for message in messages -%}
    {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
""",
    "inst": """\
{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message.role == 'user' %}{{ '[INST] ' + message.content | trim + ' [/INST]' }}
    {%- else %}{% generation %}{{ ' ' + message.content | trim + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
""",
    "headers": """\
{% set ns = namespace(first=true) %}
{% for message in messages %}
    {% if message.role == 'developer' %}{% continue %}{% endif %}
    {% set head = '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' %}
    {% if ns.first %}{{ bos_token }}{% set ns.first = false %}{% endif %}
    {% if message.content is string %}
        {{- head + message.content | trim + '<|eot_id|>' }}
    {% elif message.content %}
        {{- head }}{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{{ '<|eot_id|>' }}
    {% endif %}
    {% for call in message.tool_calls or [] %}
        {{- head + '{"name": ' + call.function.name | tojson + ', "parameters": ' }}
        {{- call.function.arguments | tojson }}{{ '}<|eot_id|>' }}
    {% endfor %}
{% endfor %}
{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
""",
    "turns": """\
{{ bos_token }}{% for message in messages %}
{% if message.role == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message.role %}{% endif %}
{% if message.reasoning_content and loop.last %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}
{% set content = message.content.split('</think>')[-1].lstrip('\\n') if message.content is string else '' %}
<start_of_turn>{{ role }}
{{ content }}<end_of_turn>
{% endfor %}
{% if add_generation_prompt %}
<start_of_turn>model
{% endif %}{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}
""",
    "plain": """\
{% macro line(name, text) %}{{ name | capitalize }}: {{ text }}
{% endmacro %}
{%- for m in messages %}{% if loop.index > 6 %}{% break %}{% endif %}
{{- line(m.role, m.content | default('-', true)) }}{% endfor %}
{{- 'Assistant:' if add_generation_prompt }}""",
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <b>& more</b> in 北京",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris", "n": 1.5, "ok": True}}}
CONVERSATIONS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([user("hi")], {"add_generation_prompt": True}),
    ([user("hi"), assistant("yo"), user("  q?\n")], {"add_generation_prompt": True}),
    ([system("Be kind. 'é'"), user("hi"), assistant("a"), user("b")], {"add_generation_prompt": True}),
    ([user("hi")], {"tools": [TOOL], "add_generation_prompt": True}),
    ([user("w?"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": '{"t": 20}'}], {"tools": [TOOL]}),
    ([user("hi"), assistant("<think>\nhm\n</think>\n\nyo"), user("more")], {"add_generation_prompt": True}),
    ([user("hi"), assistant("yo", reasoning_content="hm")], {}),
    ([user("hi")], {"enable_thinking": False, "add_generation_prompt": True}),
    ([user([{"type": "text", "text": "part"}])], {}),
    ([user("a"), user("b")], {}),
    ([assistant("x"), user("b")], {}),
    ([user("")], {}),
    ([user('<b>&amp; "q" \\n {{ x }} 日本語 😀')], {}),
    ([{"role": "developer", "content": "d"}, user("x")], {"add_generation_prompt": True}),
    ([user(str(n)) if n % 2 == 0 else assistant(str(n)) for n in range(9)], {"add_generation_prompt": True}),
]
