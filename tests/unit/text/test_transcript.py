"""Transcripts: a follow-up extends the ids that were generated, and never stands for other text."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_chats import BYTES, A, B, assistant, by_bytes, remember, render, user
from sample_tokenizers import byte_level, sentencepiece, sentencepiece_backend, steady

from kvasir.core.errors import RequestError
from kvasir.text.stream import TextStream
from kvasir.text.transcript import Message, Transcripts

ROOM = 1 << 20
START, END = 1, 2


def test_a_follow_up_begins_with_the_ids_that_were_generated() -> None:
    transcripts = Transcripts(ROOM)
    messages = [user("the?")]
    ids = remember(transcripts, messages, "in the", [*by_bytes("in the"), END])
    messages += [assistant("in the"), user("stop")]
    text = render(messages)
    follow_up = transcripts.encode(A, messages, text, BYTES)
    assert follow_up[: len(ids)] == ids, "the end-of-turn token comes from the template again"
    assert BYTES.decode(follow_up) == text
    assert follow_up != BYTES.encode(text)


def test_every_turn_of_a_long_chat_extends_the_one_before() -> None:
    transcripts = Transcripts(ROOM)
    messages: list[Message] = [{"role": "system", "content": "in the"}]
    before: list[int] = []
    for turn in range(30):
        messages.append(user(f"the {turn}"))
        prompt = transcripts.encode(A, messages, render(messages), BYTES)
        assert prompt[: len(before)] == before
        assert BYTES.decode(prompt) == render(messages)
        reply = f"stop {turn} in"
        before = remember(transcripts, messages, reply, by_bytes(reply))
        messages.append(assistant(reply))


def test_a_branch_begins_with_the_turns_that_both_share() -> None:
    transcripts = Transcripts(ROOM)
    first = [user("the")]
    ids = remember(transcripts, first, "in", by_bytes("in"))
    second = [*first, assistant("in"), user("x")]
    remember(transcripts, second, "on", by_bytes("on"))
    branch = [*first, assistant("in"), user("y"), assistant("edited"), user("z")]
    found = transcripts.encode(A, branch, render(branch), BYTES)
    assert found[: len(ids)] == ids
    assert BYTES.decode(found) == render(branch)


def test_namespaces_never_see_each_other() -> None:
    transcripts = Transcripts(ROOM)
    remember(transcripts, [user("the")], "in", by_bytes("in"))
    messages = [user("the"), assistant("in"), user("x")]
    assert transcripts.encode(B, messages, render(messages), BYTES) == BYTES.encode(
        render(messages)
    )
    # nor by shifting bytes between the namespace and what follows it
    assert transcripts.encode(A + b"x", messages, render(messages), BYTES) == BYTES.encode(
        render(messages)
    )


def test_a_template_that_trims_costs_reuse_and_nothing_else() -> None:
    transcripts = Transcripts(ROOM)
    reply = " in the "
    remember(transcripts, [user("the")], reply, by_bytes(reply), trim=True)
    messages = [user("the"), assistant(reply), user("x")]
    text = render(messages, trim=True)
    assert transcripts.encode(A, messages, text, BYTES) == BYTES.encode(text)


def test_an_entry_whose_text_changed_is_not_used() -> None:
    transcripts = Transcripts(ROOM)
    remember(transcripts, [user("the")], "in", by_bytes("in"))
    messages = [user("the"), assistant("in"), user("x")]
    changed = render(messages).replace("user\nthe", "user\ntha")  # as a date in the template may
    assert transcripts.encode(A, messages, changed, BYTES) == BYTES.encode(changed)
    shorter = render(messages)[:10]
    assert transcripts.encode(A, messages, shorter, BYTES) == BYTES.encode(shorter)


@pytest.mark.parametrize(
    ("generated", "reply", "kept"),
    [
        ("in stop", "in ", "in "),  # cut before a stop string
        ("in the", "in the", "in the"),
        ("你", "你", "你"),
        ("in x", "in y", "in "),  # not the reply: only what they share is true of both
        ("ab", "xy", None),
        ("", "", None),
        ("in", "", None),
    ],
)
def test_only_ids_that_spell_the_reply_are_kept(
    generated: str, reply: str, kept: str | None
) -> None:
    transcripts = Transcripts(ROOM)
    messages = [user("the")]
    text = render(messages)
    prompt = BYTES.encode(text)
    ids = [*prompt, *by_bytes(generated)]
    stored = transcripts.remember(
        A, messages, reply, ids, text, n_prompt=len(prompt), tokenizer=BYTES
    )
    assert stored == (kept is not None)
    messages += [assistant(reply), user("x")]
    follow_up = transcripts.encode(A, messages, render(messages), BYTES)
    assert BYTES.decode(follow_up) == render(messages)
    if kept is not None:
        known = [*prompt, *by_bytes(kept)]
        assert follow_up[: len(known)] == known


def test_half_a_character_and_what_follows_a_special_token_are_not_kept() -> None:
    transcripts = Transcripts(ROOM)
    messages = [user("the")]
    text = render(messages)
    prompt = BYTES.encode(text)
    for tail, reply in (
        (by_bytes("你")[:2], "in\ufffd"),  # cut by max_tokens in the middle
        (by_bytes("你")[:2] + by_bytes("x"), "in你"),
        ([START, *by_bytes("in")], "inin"),  # the stream leaves special tokens out
        ([BYTES.vocab_size + 7], "in"),  # an id of the model's padding
    ):
        ids = [*prompt, *by_bytes("in"), *tail]
        transcripts.remember(A, messages, reply, ids, text, n_prompt=len(prompt), tokenizer=BYTES)
        follow_up = [*messages, assistant(reply), user("x")]
        found = transcripts.encode(A, follow_up, render(follow_up), BYTES)
        assert BYTES.decode(found) == render(follow_up)
        assert found[: len(prompt) + 2] == [*prompt, *by_bytes("in")]


def test_an_answer_that_goes_on_where_it_was_cut_extends_its_ids() -> None:
    transcripts = Transcripts(ROOM)
    ids = remember(transcripts, [user("the")], "in th", by_bytes("in th"))
    messages = [user("the"), assistant("in th")]
    text = render([user("the")]) + "in the stop"
    found = transcripts.encode(A, messages, text, BYTES)
    assert found[: len(ids)] == ids
    assert BYTES.decode(found) == text


def test_a_mark_for_the_beginning_of_a_text_never_gets_into_its_middle() -> None:
    tokenizer = sentencepiece()
    transcripts = Transcripts(ROOM)
    messages = [user("the")]
    prompt = tokenizer.encode("<s>the", bos=False)
    pieces = ["▁", "i", "n", "▁the"]  # the first has the mark; encoding would join it with the i
    answer = [sentencepiece_backend().token_to_id(piece) for piece in pieces]
    assert answer != tokenizer.encode("in the", bos=False)
    stream = TextStream(tokenizer)
    reply = "".join(stream.push(i).text for i in answer) + stream.finish()
    assert reply == "in the"
    transcripts.remember(
        A, messages, reply, [*prompt, *answer], "<s>the", n_prompt=len(prompt), tokenizer=tokenizer
    )
    follow_up = [*messages, assistant(reply)]
    ended = "<s>the in the</s>"
    assert transcripts.encode(A, follow_up, ended, tokenizer)[:-1] == [*prompt, *answer]
    # the rest "st" alone would be encoded as "▁st"
    cut = "<s>the in thest"
    assert transcripts.encode(A, follow_up, cut, tokenizer) == tokenizer.encode(cut, bos=False)


def test_no_bos_is_added_to_what_the_template_wrote() -> None:
    tokenizer = byte_level(add_bos_token=True, bos_token_id=0)
    transcripts = Transcripts(ROOM)
    messages = [user("the")]
    assert transcripts.encode(A, messages, render(messages), tokenizer)[0] == START
    remember(transcripts, messages, "in", by_bytes("in"), tokenizer=tokenizer)
    messages += [assistant("in"), user("x")]
    found = transcripts.encode(A, messages, render(messages), tokenizer)
    assert 0 not in found


def test_text_that_is_no_unicode_is_refused_not_a_crash() -> None:
    transcripts = Transcripts(ROOM)
    messages = [user("the \ud83d"), assistant("in"), user("x")]
    with pytest.raises(RequestError):
        transcripts.encode(A, messages, render(messages), BYTES)


def test_memory_is_bounded_and_the_least_recently_used_go_first() -> None:
    transcripts = Transcripts(8_000)
    talks = [[user(f"the {i}")] for i in range(40)]
    kept = remember(transcripts, talks[0], "in", by_bytes("in"))
    for talk in talks[1:]:
        remember(transcripts, talk, "in", by_bytes("in"))
        assert 0 < transcripts.size_bytes <= 8_000
        first = [*talks[0], assistant("in"), user("x")]  # used again and again
        assert transcripts.encode(A, first, render(first), BYTES)[: len(kept)] == kept
    second = [*talks[1], assistant("in"), user("x")]
    assert transcripts.encode(A, second, render(second), BYTES) == BYTES.encode(render(second))


def test_what_is_larger_than_all_room_is_not_kept_and_pushes_nothing_out() -> None:
    transcripts = Transcripts(2_000)
    ids = remember(transcripts, [user("the")], "in", by_bytes("in"))
    size = transcripts.size_bytes
    remember(transcripts, [user("x" * 2_000)], "in", by_bytes("in"))
    assert transcripts.size_bytes == size
    messages = [user("the"), assistant("in"), user("x")]
    assert transcripts.encode(A, messages, render(messages), BYTES)[: len(ids)] == ids


def test_the_same_turn_again_takes_the_place_of_the_first() -> None:
    transcripts = Transcripts(ROOM)
    remember(transcripts, [user("the")], "in", by_bytes("in"))
    size = transcripts.size_bytes
    again = remember(transcripts, [user("the")], "in", by_bytes("in"))
    assert transcripts.size_bytes == size
    messages = [user("the"), assistant("in"), user("x")]
    assert transcripts.encode(A, messages, render(messages), BYTES)[: len(again)] == again


WORDS = st.text("the ins.\n你é<|im_end|>", max_size=12)


@steady
@given(
    turns=st.lists(st.tuples(WORDS, WORDS, st.booleans()), min_size=1, max_size=6),
    pre=st.sampled_from(("smollm", "qwen2", "llama-bpe")),
    trim=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_whatever_was_said_the_ids_spell_the_rendered_text(
    turns: list[tuple[str, str, bool]], pre: str, trim: bool, seed: int
) -> None:
    tokenizer = byte_level(pre)
    transcripts = Transcripts(6_000)
    rng = random.Random(seed)
    messages: list[Message] = []
    for question, reply, canonical in turns:
        messages.append(user(question))
        text = render(messages, trim=trim)
        assert tokenizer.decode(transcripts.encode(A, messages, text, tokenizer)) == text
        generated = tokenizer.encode(reply, special=False) if canonical else by_bytes(reply)
        extra = by_bytes("the")[: rng.randrange(4)]  # beyond the reply, as after a stop string
        remember(transcripts, messages, reply, [*generated, *extra], trim=trim, tokenizer=tokenizer)
        messages.append(assistant(reply))


def test_threads_may_remember_and_encode_at_once() -> None:
    transcripts = Transcripts(20_000)

    def talk(number: int) -> None:
        messages = [user(f"the {number % 7}")]
        for turn in range(8):
            remember(transcripts, messages, f"in {turn}", by_bytes(f"in {turn}"))
            messages += [assistant(f"in {turn}"), user("x")]
            text = render(messages)
            assert BYTES.decode(transcripts.encode(A, messages, text, BYTES)) == text

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(talk, range(40)))
    assert transcripts.size_bytes <= 20_000
    assert transcripts.size_bytes == sum(e.size_bytes for e in transcripts._entries.values())
