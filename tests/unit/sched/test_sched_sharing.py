"""Read once: following a leader, long chats, interleaved contexts, choices of one prompt."""

from __future__ import annotations

import random

from virtual_engine import VirtualEngine, text

from kvasir.core.costs import StepCosts
from kvasir.core.events import FinishReason, Miss, Scored
from kvasir.core.requests import Sampling

SLOW = StepCosts((0.001, 0.001, 0.0, 0.001, 0.0))  # about a hundred tokens a step


def computed(made: VirtualEngine) -> int:
    return made.sched.counts["computed_tokens"]


def test_two_requests_share_a_document_while_it_is_being_read() -> None:
    rng = random.Random(1)
    made = VirtualEngine(n_blocks=800, costs=SLOW)
    document = text(rng, 1000)
    first = made.submit([*document, 1, 2, 3], max_tokens=4)
    made.step()
    second = made.submit([*document, 4, 5, 6, 7], max_tokens=4)
    third = made.submit([*document, 4, 5, 9], max_tokens=4)
    made.run()
    assert all(made.right(name) for name in (first, second, third))
    assert computed(made) <= 1003 + 2 * 8 + 3 * 4
    usage = made.answer(second).finished.usage  # type: ignore[union-attr]
    assert usage.reused_tokens >= 1000
    assert usage.miss is None


def test_a_follower_leads_when_the_leader_is_cancelled() -> None:
    rng = random.Random(2)
    made = VirtualEngine(n_blocks=800, costs=SLOW)
    document = text(rng, 1000)
    leader = made.submit([*document, 1], max_tokens=4)
    follower = made.submit([*document, 2], max_tokens=4)
    for _ in range(3):
        made.step()
    sealed = 4 * max(s.computed // 4 for s in made.sched._running.values())
    assert 0 < sealed < 1000
    made.abort(leader)
    made.run()
    assert made.answer(leader).finished.reason is FinishReason.CANCELLED  # type: ignore[union-attr]
    assert made.right(follower)
    assert computed(made) <= 1000 + 10
    assert made.answer(follower).started.reused_tokens >= sealed  # type: ignore[union-attr]


def test_a_follower_in_another_namespace_does_not_follow() -> None:
    rng = random.Random(3)
    made = VirtualEngine(n_blocks=800, costs=SLOW)
    document = text(rng, 400)
    names = [made.submit(document, namespace=ns, max_tokens=3) for ns in (b"a", b"b")]
    made.run()
    assert all(made.right(name) for name in names)
    assert [made.answer(n).started.reused_tokens for n in names] == [0, 0]  # type: ignore[union-attr]
    assert made.answer(names[1]).finished.usage.miss is Miss.FIRST_SEEN  # type: ignore[union-attr]


def test_choices_of_one_prompt_read_it_once_and_differ() -> None:
    rng = random.Random(4)
    made = VirtualEngine(n_blocks=800)
    name = made.submit(text(rng, 402), max_tokens=6, n=4, sampling=Sampling(seed=5))
    made.run()
    assert made.right(name)
    assert computed(made) <= 402 + 3 * 4 + 4 * 6
    assert len({tuple(made.answer(name, c).tokens) for c in range(4)}) == 4


def test_a_chat_of_a_hundred_turns_computes_its_new_tokens_and_little_more() -> None:
    rng = random.Random(5)
    made = VirtualEngine(n_blocks=130, block_tokens=64)  # 8,320 tokens; the window is 8,192
    made.sched.limits = made.sched.limits.__class__(window=8192)
    history: list[int] = []
    new = 0
    for _ in range(100):
        turn = text(rng, 40)
        history += turn
        answer = made.ask(history, max_tokens=40)
        history += answer.tokens
        new += len(turn) + len(answer.tokens)
    assert len(history) == 8000
    assert computed(made) <= 1.05 * new


def test_cached_tokens_are_what_is_predicted_after_unrelated_prompts_and_three_contexts() -> None:
    rng = random.Random(6)
    made = VirtualEngine(n_blocks=2000, block_tokens=16)
    contexts = [text(rng, n) for n in (500, 333, 1024)]
    known: list[list[int]] = []

    def predicted(prompt: list[int]) -> int:
        """The longest beginning that was ever computed, and at most all but one token."""
        longest = 0
        for earlier in known:
            common = 0
            for x, y in zip(earlier, prompt, strict=False):
                if x != y:
                    break
                common += 1
            longest = max(longest, common)
        return min(longest, len(prompt) - 1)

    def ask(prompt: list[int]) -> None:
        expected = predicted(prompt)
        answer = made.ask(prompt, max_tokens=5)
        assert answer.finished is not None
        assert answer.finished.usage.reused_tokens == expected
        known.append(prompt + answer.tokens[:-1])  # the last token's KV is never computed

    for context in contexts:
        ask(context)
    for _ in range(50):
        ask(text(rng, rng.randrange(2, 90)))
    for turn in range(12):
        ask(contexts[turn % 3] + text(rng, rng.randrange(1, 40)))
    for context in contexts:
        ask(context[: rng.randrange(2, len(context))])


def test_prompt_scores_reuse_nothing_and_say_so() -> None:
    rng = random.Random(7)
    made = VirtualEngine(n_blocks=300)
    prompt = text(rng, 100)
    made.ask(prompt, max_tokens=1)
    answer = made.ask(prompt, max_tokens=1, prompt_logprobs=1)
    assert answer.finished is not None
    assert answer.finished.usage.reused_tokens == 0
    assert answer.finished.usage.miss is Miss.PROMPT_LOGPROBS


def test_only_the_first_choice_scores_the_prompt_and_the_others_reuse_it() -> None:
    rng = random.Random(11)
    made = VirtualEngine(n_blocks=300)
    name = made.submit(text(rng, 101), max_tokens=3, n=3, prompt_logprobs=1)
    made.run()
    assert made.right(name)
    positions = [
        event.start + i
        for event in made.events
        if isinstance(event, Scored)
        for i in range(len(event.scores))
    ]
    assert positions == list(range(1, 101))
    reused = [made.answer(name, c).started.reused_tokens for c in range(3)]  # type: ignore[union-attr]
    assert reused == [0, 100, 100]
    assert made.answer(name).finished.usage.differs_at is None  # type: ignore[union-attr]


def test_prompt_scores_come_once_for_each_position_also_after_a_preemption() -> None:
    rng = random.Random(10)
    made = VirtualEngine(n_blocks=30, answer_room_tokens=0, costs=SLOW)
    rival = made.submit(text(rng, 8), max_tokens=100)
    scored = made.submit(text(rng, 60), max_tokens=40, prompt_logprobs=1)
    made.run()
    assert made.right(rival)
    assert made.right(scored)
    assert made.answer(scored).finished.usage.preemptions > 0  # type: ignore[union-attr]
    positions = [
        event.start + i
        for event in made.events
        if isinstance(event, Scored)
        for i in range(len(event.scores))
    ]
    assert positions == list(range(1, 60))


def test_a_prompt_that_is_only_read_answers_nothing_and_is_there_afterwards() -> None:
    rng = random.Random(8)
    made = VirtualEngine(n_blocks=300)
    prompt = text(rng, 101)
    name = made.submit(prompt, max_tokens=0)
    made.run()
    assert made.answer(name).tokens == []
    assert made.answer(name).finished.reason is FinishReason.LENGTH  # type: ignore[union-attr]
    follow_up = made.ask([*prompt, 7], max_tokens=3)
    assert follow_up.finished.usage.reused_tokens == 101  # type: ignore[union-attr]


def test_a_stop_token_ends_the_answer_and_is_no_text() -> None:
    rng = random.Random(9)
    made = VirtualEngine(n_blocks=300)
    prompt = text(rng, 30)
    whole = made.ask(prompt, max_tokens=10).tokens
    name = made.submit(prompt, max_tokens=10, stop_token_ids=frozenset({whole[4]}))
    made.run()
    answer = made.answer(name)
    assert answer.tokens == whole[:4]
    assert answer.finished.reason is FinishReason.STOP  # type: ignore[union-attr]
    assert answer.finished.stop_token == whole[4]  # type: ignore[union-attr]
    assert answer.finished.usage.completion_tokens == 5  # type: ignore[union-attr]
