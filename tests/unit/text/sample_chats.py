"""Conversations as the tests of transcripts play them."""

from __future__ import annotations

from pathlib import Path

from sample_tokenizers import byte_level

from kvasir.text.tokenizer import Tokenizer
from kvasir.text.transcript import Message, Transcripts
from kvasir.text.transcript_file import TranscriptFile

BYTES = byte_level()
A, B = b"tenant a", b"tenant b"


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def render(messages: list[Message], *, trim: bool = False) -> str:
    def content(message: Message) -> str:
        text = str(message["content"])
        return text.strip() if trim else text

    turns = [f"<|im_start|>{m['role']}\n{content(m)}<|im_end|>\n" for m in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def by_bytes(text: str) -> list[int]:
    """Ids of ``text`` that encoding would never choose: a token per byte."""
    return [4 + byte for byte in text.encode("utf-8")]


def remember(
    transcripts: Transcripts,
    messages: list[Message],
    reply: str,
    generated: list[int],
    *,
    namespace: bytes = A,
    trim: bool = False,
    tokenizer: Tokenizer = BYTES,
) -> list[int]:
    """Play one turn; the ids of prompt and answer."""
    text = render(messages, trim=trim)
    prompt = transcripts.encode(namespace, messages, text, tokenizer)
    whole = [*prompt, *generated]
    transcripts.remember(
        namespace, messages, reply, whole, text, n_prompt=len(prompt), tokenizer=tokenizer
    )
    return whole


def opened(
    path: Path,
    *,
    tokenizer_id: str = "t1-bytes",
    capacity_bytes: int = 1 << 26,
    vocab_size: int = BYTES.vocab_size,
) -> Transcripts:
    """Transcripts over the file at ``path``; again over the same one is a restart."""
    file = TranscriptFile(path, tokenizer_id, capacity_bytes=capacity_bytes, vocab_size=vocab_size)
    return Transcripts(capacity_bytes, file)


def knows(transcripts: Transcripts, question: str, reply: str, *, namespace: bytes = A) -> bool:
    """Whether a follow-up extends the ids that ``reply`` was generated as, byte by byte. Its ids
    spell what was said either way."""
    messages = [user(question), assistant(reply), user("x")]
    text = render(messages)
    ids = transcripts.encode(namespace, messages, text, BYTES)
    assert BYTES.decode(ids) == text
    generated = [*BYTES.encode(render([user(question)])), *by_bytes(reply)]
    return ids[: len(generated)] == generated
