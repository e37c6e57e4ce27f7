"""kill -9 of a server at random moments of all that is done with files and contexts: what was
acknowledged is there afterwards, what was not is gone or can be gone on with, and nothing is read
twice that was marked as read."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from context_child import KEYS
from context_driver import (
    SECTION_TOKENS,
    UNFINISHED,
    Codecs,
    Gone,
    Known,
    Left,
    Life,
    Shelf,
    Spawner,
    check_home,
    document,
    left_to_read,
    namespace_of,
    said,
    settled,
    wait_for,
    words,
)

from kvasir.contexts.definition import Definition

KILLS = int(os.environ.get("KVASIR_TEST_CONTEXT_KILLS", "200"))
SEED = int(os.environ.get("KVASIR_TEST_SEED", "0"))
WORLDS = 2  # homes, each with a server at a time
MOST_CONTEXTS = 10
ALICE, BOB = KEYS  # who does all of it, and who is to see none of it
JSON = {"content-type": "application/json"}
BYTES = {"content-type": "application/octet-stream"}


class World:
    """A home, what was acknowledged on it, and the operations on it."""

    def __init__(self, folder: Path, number: int) -> None:
        self.home = folder / f"home-{number}"
        self.stderr = folder / f"stderr-{number}"
        self.rng = random.Random(f"{SEED} {number}")
        self.shelf = Shelf()
        self.codecs = Codecs()
        self.seen: Counter[str] = Counter()
        self.left: dict[str, Left] = {}
        self.took_s: dict[str, float] = {}
        self.operations: dict[str, Callable[[Life], None]] = {
            "create": self.create,
            "read": self.read,
            "upload": self.upload,
            "fork": self.fork,
            "export": self.export,
            "import": self.take_in,
            "delete": self.delete,
            "change": self.change,
            "cancel": self.cancel,
            "ask": self.ask,
            "delete file": self.delete_file,
        }

    # what is done --------------------------------------------------------------------------------

    def do(self, operation: str, life: Life) -> None:
        """Do it, and learn how long it takes, so that the next kill hits it at any moment of it."""
        usual_s = self.took_s.get(operation, 0.3)
        began_s = time.monotonic()
        try:
            self.operations[operation](life)
        except Gone:
            self.took_s[operation] = max(usual_s, min(1.5, time.monotonic() - began_s))
            raise
        self.took_s[operation] = (usual_s + min(1.5, time.monotonic() - began_s)) / 2

    def create(self, life: Life, *, sections: int = 0, name: str | None = None) -> Known:
        """A context of texts, or of an uploaded file; acknowledged when it is listed."""
        rng = self.rng
        self.keep_few(life)
        body: dict[str, Any] = {"summaries": False, "name": name}
        n_chars = 330 * sections if sections else rng.randrange(100, 1100)
        if self.shelf.files and not sections and rng.random() < 0.3:
            id_, text = rng.choice(list(self.shelf.files.items()))
            documents = [document("notes.txt", text)]
            body["input"] = [{"type": "input_file", "file_id": id_}]
        else:
            documents = [document(f"{rng.random()}.txt", words(rng, n_chars))]
            body["input"] = [
                {"type": "input_text", "text": d.text, "title": d.name} for d in documents
            ]
        if rng.random() < 0.3:
            body["instructions"] = "Be brief."
        body["section_tokens"] = SECTION_TOKENS
        body["summaries"] = 0 < sections < 4
        definition = Definition(
            documents=tuple(documents),
            instructions=body.get("instructions"),
            section_tokens=SECTION_TOKENS,
        )
        headers = {"idempotency-key": f"{rng.random()}"}
        return self.made(life, "/v1/contexts", definition, json=body, headers=headers)

    def read(self, life: Life) -> None:
        """A context of sections, until it is read."""
        known = self.create(life, sections=self.rng.choice((3, 8, 16)), name=f"{self.rng.random()}")
        self.complete(life, known)

    def fork(self, life: Life) -> None:
        parent = self.any_of(lambda k: k.n_tokens < 1000) or self.create(life)
        more = document(f"{self.rng.random()}.txt", words(self.rng, self.rng.randrange(30, 300)))
        definition = replace(parent.definition, documents=(*parent.definition.documents, more))
        body = {"input": [{"type": "input_text", "text": more.text, "title": more.name}]}
        self.made(life, f"/v1/contexts/{parent.id}/fork", definition, json=body)

    def upload(self, life: Life) -> None:
        text = words(self.rng, self.rng.randrange(50, 900))
        self.shelf.uploading = text
        file = {"file": ("notes.txt", text.encode())}
        reply = life.call(ALICE, "POST", "/v1/files", files=file)
        self.shelf.uploading = None
        self.shelf.files[reply["id"]] = text

    def export(self, life: Life) -> None:
        known = self.completed(life)
        got = bytearray()
        try:
            life.stream(ALICE, f"/v1/contexts/{known.id}/export", got)
        except Gone:
            self.shelf.broken.append(bytes(got))
            raise
        self.shelf.exports = [*self.shelf.exports[-3:], (bytes(got), known.definition)]

    def take_in(self, life: Life) -> None:
        """An exported context that is deleted comes back with its KV: nothing of it is computed."""
        if not self.shelf.exports:
            self.export(life)
        data, definition = self.rng.choice(self.shelf.exports)
        for known in self.same(definition):
            self.delete(life, known)
        known = self.made(life, "/v1/contexts/import", definition, content=data, headers=BYTES)
        if self.rng.random() < 0.5:
            row = self.complete(life, known)
            assert row["usage"]["computed_tokens"] == 0, row
            self.seen["imported"] += 1

    def delete(self, life: Life, known: Known | None = None) -> None:
        known = known or self.any_of() or self.create(life)
        self.shelf.contexts[known.id] = known = replace(known, leaving=True)
        life.call(ALICE, "DELETE", f"/v1/contexts/{known.id}", headers=JSON)
        self.left_for_good(known)

    def delete_file(self, life: Life) -> None:
        if not self.shelf.files:
            self.upload(life)
        self.shelf.leaving_file = id_ = self.rng.choice(list(self.shelf.files))
        life.call(ALICE, "DELETE", f"/v1/files/{id_}", headers=JSON)
        del self.shelf.files[id_]
        self.shelf.gone.add(id_)
        self.shelf.leaving_file = None

    def change(self, life: Life) -> None:
        """Name, pin and metadata together: all of it is changed or nothing."""
        known = self.any_of() or self.create(life)
        new = {
            "name": f"n{self.rng.random()}",
            "pinned": not known.pinned,
            "metadata": {"k": f"{self.rng.random()}"},
        }
        self.shelf.contexts[known.id] = replace(known, or_else=new)
        life.call(ALICE, "PATCH", f"/v1/contexts/{known.id}", json={**new, "ttl": "3h"})
        self.shelf.contexts[known.id] = replace(known, **new)

    def cancel(self, life: Life) -> None:
        """What is cancelled stays so, until it is created again, which goes on with it."""
        known = self.create(life, sections=10)
        time.sleep(self.rng.uniform(0, 0.2))
        self.shelf.contexts[known.id] = replace(known, stopping=True)
        row = life.call(ALICE, "POST", f"/v1/contexts/{known.id}/cancel", json={})
        assert row["status"] in ("cancelled", "completed")
        self.shelf.contexts[known.id] = known = replace(known, status=row["status"])
        if self.rng.random() < 0.6:
            self.go_on_with(life, known, row)

    def ask(self, life: Life) -> None:
        """Some of what is read, in words and as ids."""
        for _ in range(3):
            self.asked(life, self.completed(life))

    # how it is done ------------------------------------------------------------------------------

    def made(self, life: Life, path: str, definition: Definition, **request: Any) -> Known:
        """Make a context, and take note of it before and after."""
        parts = self.codecs.parts(definition)
        body = request.get("json") or {}
        new = Known(
            id="",
            definition=definition,
            parts=parts,
            name=body.get("name"),
            summaries=bool(body.get("summaries")),
        )
        self.shelf.making = (new, path, request)
        reply = life.call(ALICE, "POST", path, **request)
        self.shelf.making = None
        return self.noted(new, reply)

    def noted(self, new: Known, reply: dict[str, Any]) -> Known:
        """``new``, under the id that it has; it may have been known before."""
        assert reply["tokens"] == new.n_tokens
        known = self.shelf.contexts.get(reply["id"])
        assert known is None or known.definition == new.definition
        self.shelf.contexts[reply["id"]] = replace(
            known or new,
            id=reply["id"],
            name=reply["name"],
            pinned=reply["pinned"],
            metadata=reply["metadata"],
            status=reply["status"],
        )
        return self.shelf.contexts[reply["id"]]

    def made_again(self, life: Life, known: Known) -> Known:
        """Create what is there already: it is the same context."""
        definition = known.definition
        body = {
            "input": [
                {"type": "input_text", "text": d.text, "title": d.name}
                for d in definition.documents
            ],
            "instructions": definition.instructions,
            "section_tokens": definition.section_tokens,
        }
        reply = life.call(ALICE, "POST", "/v1/contexts", json=body)
        assert reply["id"] == known.id, "the same content is two contexts"
        return self.noted(known, reply)

    def go_on_with(self, life: Life, known: Known, row: dict[str, Any]) -> None:
        """Create what was cancelled again: what was read of it is not computed again."""
        read, before = row["progress"]["processed_tokens"], row["usage"]["computed_tokens"]
        row = self.complete(life, self.made_again(life, known))
        assert row["usage"]["computed_tokens"] - before <= known.n_tokens - read
        self.seen["went on"] += 1

    def complete(self, life: Life, known: Known) -> dict[str, Any]:
        """Wait until a context is read, which takes nothing but time."""
        row: dict[str, Any] = {}

        def ended() -> bool:
            row.update(life.call(ALICE, "GET", f"/v1/contexts/{known.id}"))
            return row["status"] not in UNFINISHED

        wait_for(ended, f"{known.id} to be read")
        assert row["status"] == "completed", row
        self.shelf.contexts[known.id] = replace(known, status="completed")
        return row

    def completed(self, life: Life) -> Known:
        """A context of alice that is read."""
        known = self.any_of(lambda k: k.status != "cancelled") or self.create(life)
        if known.status != "completed":
            self.complete(life, known)
        return self.shelf.contexts[known.id]

    def asked(self, life: Life, known: Known) -> None:
        """A part of it is asked: the answer is that of all its tokens, of which none is computed
        but the question."""
        namespace, seed = namespace_of(self.home, ALICE), self.rng.randrange(1, 5)
        part = self.rng.choice(known.parts)
        prompt = [*part, *self.codecs.tail]
        body: dict[str, Any] = {"max_tokens": 3, "seed": seed}
        if len(known.parts) == 1 and self.rng.random() < 0.5:
            body |= {"context": known.id, "messages": [{"role": "user", "content": "When?"}]}
            reply = life.call(ALICE, "POST", "/v1/chat/completions", json=body)
            text = reply["choices"][0]["message"]["content"]
        else:
            body["prompt"] = prompt
            reply = life.call(ALICE, "POST", "/v1/completions", json=body)
            text = reply["choices"][0]["text"]
        assert text == said(self.codecs, namespace, prompt, 3, seed)
        assert reply["usage"]["prompt_tokens"] == len(prompt)
        cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= len(part), f"{len(part) - cached} tokens of {known.id} were computed again"
        self.seen["answers"] += 1

    def any_of(self, suits: Callable[[Known], bool] = lambda _: True) -> Known | None:
        found = [known for known in self.shelf.contexts.values() if suits(known)]
        return self.rng.choice(found) if found else None

    def same(self, definition: Definition) -> list[Known]:
        """The contexts that are made of just that."""
        return [k for k in self.shelf.contexts.values() if k.definition == definition]

    def keep_few(self, life: Life) -> None:
        while len(self.shelf.contexts) >= MOST_CONTEXTS:
            self.delete(life, next(iter(self.shelf.contexts.values())))

    def left_for_good(self, known: Known) -> None:
        del self.shelf.contexts[known.id]
        self.shelf.gone.add(known.id)

    # what must be there --------------------------------------------------------------------------

    def check(self, life: Life, *, wait: bool) -> None:
        """Everything that was acknowledged, after a start; ``wait`` for what is still to be read.
        Nothing was asked of this server yet."""
        shelf = self.shelf
        files = life.listed(ALICE, "files")
        rows = life.listed(ALICE, "contexts")
        assert not life.listed(BOB, "files")
        assert not life.listed(BOB, "contexts")
        writing = any(left.summaries for left in self.left.values())
        check_home(self.home, set(files), set(rows), written=writing)
        assert not shelf.gone & (set(files) | set(rows)), "something deleted is back"
        self.check_files(life, set(files))
        undone = {known.id for known in shelf.contexts.values() if known.leaving}
        self.check_contexts(rows)
        if wait:
            self.check_reading(life)
        if shelf.making is not None:
            self.go_on(life)
        for data in shelf.broken:
            reply = life.call(
                ALICE, "POST", "/v1/contexts/import", ok=False, content=data, headers=BYTES
            )
            assert reply.status_code == 422, "half an export was taken for a whole one"
            assert reply.json()["error"]["code"] == "invalid_context_file"
            self.seen["broken exports"] += 1
        shelf.broken = []
        for known in list(shelf.contexts.values()):
            # one whose deletion was undone is whole
            sure = 1.0 if known.id in undone else 0.3
            if known.status == "completed" and self.rng.random() < sure:
                self.asked(life, known)
            if known.status == "cancelled" and self.rng.random() < 0.3:
                row = life.call(ALICE, "GET", f"/v1/contexts/{known.id}")
                self.go_on_with(life, known, row)

    def check_files(self, life: Life, listed: set[str]) -> None:
        shelf = self.shelf
        if shelf.leaving_file is not None and shelf.leaving_file not in listed:
            del shelf.files[shelf.leaving_file]
            shelf.gone.add(shelf.leaving_file)
        shelf.leaving_file = None
        new = listed - set(shelf.files)
        if new:
            (id_,) = new
            assert shelf.uploading is not None, "a file is there that nobody has uploaded"
            shelf.files[id_] = shelf.uploading
            self.seen["uploaded unheard"] += 1
        shelf.uploading = None
        assert listed == set(shelf.files), "a file is lost"
        for id_ in {*new, *self.rng.sample(sorted(shelf.files), min(2, len(shelf.files)))}:
            content = life.call(ALICE, "GET", f"/v1/files/{id_}/content", ok=False)
            assert content.text == shelf.files[id_]

    def check_contexts(self, rows: dict[str, dict[str, Any]]) -> None:
        shelf = self.shelf
        for known in list(shelf.contexts.values()):
            row = rows.pop(known.id, None)
            if row is None:
                assert known.leaving, f"the context {known.id} is lost"
                self.left_for_good(known)
                self.seen["deleted unheard"] += 1
                continue
            assert row["tokens"] == known.n_tokens
            ended = [known.status] if known.status not in UNFINISHED else [*UNFINISHED, "completed"]
            if known.leaving or known.stopping:
                ended.append("cancelled")
            assert row["status"] in ended, f"{known.id} is {row['status']}, not {known.status}"
            shelf.contexts[known.id] = settled(known, row)
        if rows:
            (row,) = rows.values()
            assert shelf.making is not None, "a context is there that nobody has made"
            self.noted(shelf.making[0], row)
            self.seen["made unheard"] += 1

    def check_reading(self, life: Life) -> None:
        """What was to be read is read by itself; what was marked as read is not computed again."""
        for id_ in self.left:
            if id_ not in self.shelf.contexts:
                continue
            known, left = self.shelf.contexts[id_], self.left[id_]
            row = self.complete(life, known)
            assert row["usage"]["computed_tokens"] - left.computed_tokens <= left.unread_tokens
            self.seen["went on after a kill"] += left.unread_tokens < known.n_tokens
        if not any(left.summaries for left in self.left.values()):
            computed = life.computed_tokens()
            assert computed <= sum(left.unread_tokens for left in self.left.values())

    def go_on(self, life: Life) -> None:
        """Repeat what was not acknowledged, as a client does: it is done once."""
        assert self.shelf.making is not None
        new, path, request = self.shelf.making
        if path.endswith("/fork") and path.split("/")[3] not in self.shelf.contexts:
            self.shelf.making = None
            return
        made = self.noted(new, life.call(ALICE, "POST", path, **request))
        self.shelf.making = None
        assert [known.id for known in self.same(new.definition)] == [made.id]
        self.seen["repeated"] += 1


def live_and_die(world: World, spawner: Spawner, kill: int, operation: str) -> None:
    """One start, what must be there, and a kill in the midst of ``operation``."""
    life = Life(spawner)
    try:
        with suppress(Gone):
            if kill % 10 == 9:  # while it is looked at
                with life.killed_in(world.rng.uniform(0, 0.15)):
                    world.check(life, wait=False)
                return
            world.check(life, wait=kill % 3 != 2)
            with life.killed_in(world.rng.uniform(0, 1.1) * world.took_s.get(operation, 0.3)):
                world.do(operation, life)
                world.seen["too late"] += 1
                while True:
                    world.do(world.rng.choice(list(world.operations)), life)
    finally:
        life.bury()
    world.left = left_to_read(world.home)
    world.seen["killed while reading"] += bool(world.left)


def live(folder: Path, number: int, kills: range) -> Counter[str]:
    """All lives on one home."""
    world = World(folder, number)
    spawner = Spawner(world.home, world.stderr)
    try:
        for kill, operation in zip(kills, cycle(world.operations), strict=False):
            try:
                live_and_die(world, spawner, kill, operation)
            except BaseException as error:
                log = world.stderr.read_text()[-3000:]
                error.add_note(f"kill {kill} ({operation}), KVASIR_TEST_SEED={SEED}: {log}")
                raise
        life = Life(spawner)
        try:
            world.check(life, wait=True)
            for known in list(world.shelf.contexts.values()):
                if world.shelf.contexts[known.id].status != "cancelled":
                    world.complete(life, known)
                    world.asked(life, known)
        finally:
            life.bury()
    finally:
        spawner.close()
    assert "Traceback" not in world.stderr.read_text(), world.stderr.read_text()[-3000:]
    return world.seen


@pytest.mark.timeout(120 + 5 * KILLS)
def test_a_killed_server_keeps_what_it_has_acknowledged(tmp_path: Path) -> None:
    each = -(-KILLS // WORLDS)
    with ThreadPoolExecutor(WORLDS) as pool:
        lives = [pool.submit(live, tmp_path, n, range(each)) for n in range(WORLDS)]
        seen = sum((one.result() for one in lives), Counter[str]())
    if KILLS >= 100:
        tried = (
            "answers", "imported", "made unheard", "repeated", "went on after a kill",
            "killed while reading", "broken exports",
        )  # fmt: skip
        assert all(seen[what] for what in tried), seen
