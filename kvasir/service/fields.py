"""The parts of request bodies that accept several shapes, normalised to one while validating.

Own validators instead of unions: a union tries every member on every element, so that a long list
of token ids would cost as many error objects as it has elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_PROMPTS = 128  # prompts of one Completions request
MAX_STOPS = 8
MAX_STOP_CHARS = 512
MAX_BIASES = 1024
MAX_STOP_TOKENS = 64
MAX_TOKEN_ID = 2**31 - 1

Prompt = str | list[int]


def wrong(message: str) -> PydanticCustomError:
    """A validation error whose text is our own."""
    return PydanticCustomError("value_error", "{reason}", {"reason": message})


def whole(value: Any) -> Any:
    """JSON has one kind of number: 2.0 is the whole number 2 (within what a float is exact for)."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    return value


Whole = Annotated[int, BeforeValidator(whole)]


def check_ids(ids: list[Any], what: str) -> list[int]:
    """``ids`` if each one is a whole number that a token id can be."""
    ids = [whole(token) for token in ids]
    for at, token in enumerate(ids):
        if type(token) is not int or not 0 <= token <= MAX_TOKEN_ID:
            raise wrong(f"{what} must hold token ids from 0 to {MAX_TOKEN_ID}; item {at} is none")
    return ids


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """One text, many, one list of token ids, or many, as a tuple of prompts."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise wrong("expected text, token ids, or a list of either that is not empty")
    if type(value[0]) in (int, float):
        return (check_ids(value, "a list of token ids"),)
    if len(value) > MAX_PROMPTS:
        raise wrong(f"at most {MAX_PROMPTS} prompts fit in one request; got {len(value)}")
    if isinstance(value[0], str):
        for at, text in enumerate(value):
            if not isinstance(text, str):
                raise wrong(f"the first prompt is text, so all must be; item {at} is not")
        return tuple(value)
    for at, ids in enumerate(value):
        if not isinstance(ids, list) or not ids:
            raise wrong(f"item {at} must be a list of token ids that is not empty")
    return tuple(check_ids(ids, f"item {at}") for at, ids in enumerate(value))


Prompts = Annotated[
    tuple[Prompt, ...],
    PlainValidator(_prompts),
    WithJsonSchema(
        {
            "title": "Prompt",
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {"type": "string"},
                    "minItems": 1,
                    "maxItems": MAX_PROMPTS,
                },
                {"$ref": "#/components/schemas/TokenIds"},
                {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/TokenIds"},
                    "minItems": 1,
                    "maxItems": MAX_PROMPTS,
                },
            ],
        }
    ),
]

_ID_SCHEMA = {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID}
TOKEN_IDS_SCHEMA: dict[str, Any] = {
    "title": "TokenIds",
    "type": "array",
    "items": _ID_SCHEMA,
    "minItems": 1,
}


def _token_ids(value: Any) -> list[int]:
    """A list of token ids, which may be empty."""
    if not isinstance(value, list):
        raise wrong("expected a list of token ids")
    return check_ids(value, "the list")


TokenIds = Annotated[
    list[int],
    PlainValidator(_token_ids),
    WithJsonSchema({"type": "array", "items": _ID_SCHEMA}),
]


def _stop_tokens(value: Any) -> tuple[int, ...]:
    """Up to 64 token ids, as a tuple."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_STOP_TOKENS:
        raise wrong(f"expected a list of at most {MAX_STOP_TOKENS} token ids")
    return tuple(check_ids(value, "the list"))


StopTokens = Annotated[
    tuple[int, ...],
    PlainValidator(_stop_tokens),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": _ID_SCHEMA, "maxItems": MAX_STOP_TOKENS},
                {"type": "null"},
            ]
        }
    ),
]


def _stops(value: Any) -> tuple[str, ...]:
    """One stop string or up to eight, as a tuple."""
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise wrong(f"expected text or a list of at most {MAX_STOPS} texts")
    for at, stop in enumerate(stops):
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise wrong(f"item {at} must be text of 1 to {MAX_STOP_CHARS} characters")
    return tuple(stops)


_STOP_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
Stops = Annotated[
    tuple[str, ...],
    PlainValidator(_stops),
    WithJsonSchema(
        {
            "anyOf": [
                _STOP_SCHEMA,
                {"type": "array", "items": _STOP_SCHEMA, "maxItems": MAX_STOPS},
                {"type": "null"},
            ]
        }
    ),
]


def _biases(value: Any) -> Mapping[int, float]:
    """OpenAI's map of token id in decimal -> bias, as numbers."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise wrong(f"expected an object with at most {MAX_BIASES} entries, token id -> bias")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= MAX_TOKEN_ID):
            raise wrong(f"{key[:20]!r} is not a token id")
        # the comparison also refuses NaN
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise wrong(f"the bias of token {key} must be a number from -100 to 100")
        biases[int(key)] = float(bias)
    return biases


Biases = Annotated[
    Mapping[int, float],
    PlainValidator(_biases),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                    "maxProperties": MAX_BIASES,
                },
                {"type": "null"},
            ]
        }
    ),
]


def _flatten(value: Any) -> Any:
    """Text parts joined by line breaks; any other kind of part is refused by name."""
    if not isinstance(value, list):
        return value
    texts: list[str] = []
    for at, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise wrong(
                f"part {at} is of type {kind[:40]!r}; only parts of type 'text' are supported"
            )
        text = part.get("text") if isinstance(part, dict) and kind == "text" else None
        if not isinstance(text, str):
            raise wrong(f"part {at} must be an object with type 'text' and a text")
        texts.append(text)
    return "\n".join(texts)


Content = Annotated[
    str,
    BeforeValidator(_flatten),
    WithJsonSchema(
        {
            "title": "Content",
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "type": {"const": "text"},
                            "text": {"type": "string"},
                        },
                        "required": ["type", "text"],
                    },
                },
            ],
        }
    ),
]
