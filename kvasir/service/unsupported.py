"""Known fields that are not there yet and would change the answer: refused by name.

An unknown field is ignored, as clients expect. A field that is known elsewhere, asks for a
different answer, and is silently ignored would be a lie; so each of these is a 400 until it works.
Values that ask for what happens anyway pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvasir.service.errors import ApiError, bad_request

Harmless = Callable[[Any], bool]


def _is(*values: object) -> Harmless:
    """Passes these values; a truth value never passes for the number that it equals in Python."""
    return lambda value: any(value == v and isinstance(value, bool) == isinstance(v, bool)
                             for v in values)  # fmt: skip


def _only(key: str, wanted: object) -> Harmless:
    return lambda value: isinstance(value, dict) and value.get(key) == wanted


_EMPTY = _is([], {}, "")

GENERATION: Mapping[str, Harmless] = {
    "response_format": _only("type", "text"),
    "guided_json": _EMPTY,
    "guided_regex": _EMPTY,
    "guided_choice": _EMPTY,
    "guided_grammar": _EMPTY,
    "structured_outputs": _EMPTY,
    "json_schema": _EMPTY,
    "grammar": _EMPTY,
    "min_tokens": _is(0),
    "length_penalty": _is(1),
    "use_beam_search": _is(False),
    "allowed_token_ids": _EMPTY,
    "bad_words": _EMPTY,
    "logits_processors": _EMPTY,
    "truncate_prompt_tokens": _is(),
    "skip_special_tokens": _is(True),
    "include_stop_str_in_output": _is(False),
    "typical_p": _is(1),
    "mirostat": _is(0),
    "dry_multiplier": _is(0),
    "xtc_probability": _is(0),
    "dynatemp_range": _is(0),
    "prompt_logprobs": _is(),
    "prompt_embeds": _is(),
}

CHAT: Mapping[str, Harmless] = {
    **GENERATION,
    "tools": _EMPTY,
    "tool_choice": _is("none", "auto"),
    "functions": _EMPTY,
    "function_call": _is("none", "auto"),
    "modalities": _is(["text"]),
    "audio": _is(),
    "web_search_options": _is(),
    "chat_template": _is(),
    "chat_template_kwargs": _EMPTY,
    "add_generation_prompt": _is(True),
    "continue_final_message": _is(False),
    "documents": _EMPTY,
    "best_of": _is(1),
}

COMPLETION: Mapping[str, Harmless] = {**GENERATION, "suffix": _EMPTY}

TOKENIZE: Mapping[str, Harmless] = {"chat_template": _is(), "tools": _EMPTY}

NOTHING: Mapping[str, Harmless] = {}

_MESSAGE_FIELDS = ("tool_calls", "function_call", "audio")
_MESSAGE_ROLES = ("tool", "function")


def check(body: object, table: Mapping[str, Harmless]) -> None:
    """Raise a 400 for the first field of ``body`` that is not there yet.

    ``body`` is not validated yet: wrong types are left for the schema to refuse.
    """
    if not isinstance(body, dict):
        return
    for name, value in body.items():
        harmless = table.get(name)
        if harmless is not None and value is not None and not harmless(value):
            raise _not_yet(name)
    best_of = body.get("best_of")
    if table is COMPLETION and best_of is not None and best_of != (body.get("n") or 1):
        raise bad_request(
            "'best_of' other than 'n' is not supported: every answer is returned.",
            "best_of",
            "unsupported_parameter",
        )
    messages = body.get("messages")
    for at, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            _check_message(message, f"messages[{at}]")


def _check_message(message: dict[str, Any], where: str) -> None:
    if message.get("role") in _MESSAGE_ROLES:
        raise _not_yet(f"{where}.role", f"role {message['role']!r} in '{where}'")
    for name in _MESSAGE_FIELDS:
        if message.get(name):
            raise _not_yet(f"{where}.{name}")


def _not_yet(param: str, what: str | None = None) -> ApiError:
    return bad_request(
        f"{what or repr(param)} is not supported here yet, and leaving it out of account would "
        "change the answer. Send the request without it.",
        param,
        "unsupported_parameter",
    )
