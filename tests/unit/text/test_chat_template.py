"""Chat templates: what published ones need, and what hostile ones must not do."""

from __future__ import annotations

import gc
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvasir.core.errors import TemplateError
from kvasir.text.template import ChatTemplate, check_template

CHATML = (
    "{% for message in messages %}\n"
    "    {% if loop.first and message.role != 'system' %}\n"
    "<|im_start|>system\nBe kind.<|im_end|>\n"
    "    {% endif %}\n"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
USER = {"role": "user", "content": "Hello"}


def rendered(source: str, *contents: str, bos: str = "", eos: str = "") -> str:
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    template = ChatTemplate(source, bos=bos, eos=eos)
    try:
        return template.render(messages)
    finally:
        template.close()


def test_blocks_are_trimmed_as_transformers_does() -> None:
    template = ChatTemplate(CHATML)
    head = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    assert template.render([USER]) == head + "<|im_start|>assistant\n"
    assert template.render([USER], generation_prompt=False) == head
    template.close()


def test_it_equals_transformers_on_the_constructs_of_published_templates() -> None:
    chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    source = (
        "{%- set ns = namespace(found=false) -%}\n"
        "  {% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}\n"
        "{% if loop.index > 3 %}{% break %}{% endif %}\n"
        "{%- set ns.found = true %}{{ m | tojson }}{{ m.content.split(' ')[-1] | trim }}\n"
        "{% generation %}<{{ m.content }}>{% endgeneration %}{% endfor %}\n"
        "{{ ns.found }}{{ bos_token }}{{ eos_token }}{{ messages | tojson(indent=2) }}"
    )
    messages = [
        {"role": "user", "content": "ä <b> 'quoted'"},
        {"role": "tool", "content": "left out"},
        {"role": "assistant", "content": "你好 & 😀"},
    ]
    expected, _ = chat_template_utils.render_jinja_template(
        [messages], chat_template=source, bos_token="<s>", eos_token="</s>"
    )
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    assert template.render(messages) == expected[0]
    template.close()


def test_the_tokens_of_the_model_and_the_date_are_there() -> None:
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ strftime_now('%Y') }}"
    text = rendered(source, "in", bos="<s>", eos="</s>")
    assert text[:-4] == "<s>in</s>"
    assert text[-4:].isdigit()


def test_a_template_that_refuses_a_system_role_still_serves_the_others() -> None:
    check_template(NO_SYSTEM, bos="<s>", eos="</s>")
    assert rendered(NO_SYSTEM, "a", "b", "c", bos="<s>", eos="</s>") == (
        "<s>[INST] a [/INST]b</s>[INST] c [/INST]"
    )
    template = ChatTemplate(NO_SYSTEM)
    with pytest.raises(TemplateError, match="roles must alternate"):
        template.render([{"role": "system", "content": "x"}, USER])
    assert template.render([USER]) == "[INST] Hello [/INST]", "the next request is not affected"
    template.close()


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
BOMB = (
    "{% set ns = namespace(x='x') %}"
    "{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
)
ECHO = "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (LOOP, "CPU time"),
        (ECHO + "{% if messages | length > 1 %}" + LOOP + "{% endif %}", "CPU time"),
        (BOMB, "more memory"),
        ("{{ 'x' * 10 ** 12 }}", "more memory"),
        (ECHO + "{% if messages | length > 1 %}{{ 'x' * 10 ** 12 }}{% endif %}", "more memory"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "calls itself"),
        ("{% if", "TemplateSyntaxError"),
        ("{{ raise_exception('never') }}", "never"),
        ("{{ messages[0].content.nothing.there }}", "UndefinedError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{% set x = messages.append(1) %}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "Error"),
        ("always the same", "leaves out the text"),
        ("{% for part in messages[0].content %}{{ part.text }}{% endfor %}", "leaves out"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_at_load(source: str, said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        check_template(source)


def test_a_template_that_turns_hostile_on_a_message_fails_that_request_alone() -> None:
    template = ChatTemplate(ECHO + "{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}")
    assert template.render([USER]) == "Hello"
    with pytest.raises(TemplateError, match="did not end"):
        template.render([USER | {"content": "loop"}])
    assert template.render([USER]) == "Hello"
    template.close()


def test_cpu_time_is_counted_per_request_not_per_process() -> None:
    work = "{% for i in range(99999) %}{% for j in range(4) %}{% endfor %}{% endfor %}"
    template = ChatTemplate(work + ECHO)
    for _ in range(12):  # together more than one may take
        assert template.render([USER]) == "Hello"
    template.close()


def test_large_conversations_and_every_character_pass() -> None:
    template = ChatTemplate(CHATML)
    text = "".join(map(chr, [*range(0x3000), 0x1F600, 0xD83D])) * 200
    assert template.render([{"role": "user", "content": text}]).count(text) == 1
    big = "😀" * 10_000_000  # more than the memory that a short conversation may take
    assert big in template.render([{"role": "user", "content": big}])
    template.close()


def test_what_is_no_json_is_refused() -> None:
    template = ChatTemplate(ECHO)
    with pytest.raises(TemplateError, match="cannot be given"):
        template.render([{"role": "user", "content": object()}])
    assert template.render([USER]) == "Hello"
    template.close()


def test_the_servers_environment_is_not_the_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVASIR_SECRET", "hush")
    template = ChatTemplate(ECHO)
    template.render([USER])
    pid = child_pids().pop()
    environment = Path(f"/proc/{pid}/environ")
    if not environment.exists():
        pytest.skip("needs /proc")
    assert b"hush" not in environment.read_bytes()
    template.close()


def child_pids() -> set[int]:
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    if not listed.exists():
        pytest.skip("needs /proc/self/task/*/children")
    return {int(pid) for pid in listed.read_text().split()}


def test_no_process_or_descriptor_is_left_behind() -> None:
    gc.collect()
    processes, descriptors = child_pids(), len(os.listdir("/proc/self/fd"))
    for source in (CHATML, "{{ 'x' * 10 ** 12 }}", "{% if"):
        try:
            check_template(source)
        except TemplateError:
            continue
    template = ChatTemplate(CHATML)
    template.render([USER])
    assert len(child_pids()) == len(processes) + 1
    del template
    gc.collect()
    assert child_pids() == processes
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_process_that_was_killed_from_outside_is_replaced() -> None:
    before = child_pids()
    template = ChatTemplate(CHATML)
    text = template.render([USER])
    (pid,) = child_pids() - before
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert template.render([USER]) == text
    template.close()
    assert child_pids() == before


def test_an_interrupt_in_the_middle_never_gives_the_next_request_its_text() -> None:
    template = ChatTemplate(ECHO)
    template.render([USER])
    process = template._process
    assert process is not None
    read = process._read

    def interrupted(n_bytes: int, deadline_s: float) -> bytes:
        raise KeyboardInterrupt

    process._read = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        template.render([USER | {"content": "of another"}])
    process._read = read  # type: ignore[method-assign]
    assert template.render([USER]) == "Hello"
    template.close()


def test_threads_get_each_their_own_text() -> None:
    template = ChatTemplate(CHATML)
    with ThreadPoolExecutor(8) as pool:
        texts = list(
            pool.map(lambda i: template.render([USER | {"content": f"no {i}."}]), range(100))
        )
    assert all(f"no {i}." in text for i, text in enumerate(texts))
    template.close()
