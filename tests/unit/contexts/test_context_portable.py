"""A context as one file: whatever is done to it, it is refused, or nothing of it is believed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from context_library import Made, opened, wanted
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kvasir.catalog.values import ContextRow
from kvasir.contexts import creating, keeping, portable
from kvasir.contexts.creating import Wanted
from kvasir.contexts.library import NoContext
from kvasir.contexts.portable import BadFile, PortableFile, public_hex, signing_key
from kvasir.core.errors import KvasirError

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
SHORT = "The raven came in May. "
LENGTH, MAGIC, SIGNATURE = 8, portable.MAGIC, 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with opened(tmp_path_factory.mktemp("home")) as one:
        yield one


@pytest.fixture(scope="module")
def row(made: Made) -> ContextRow:
    return made.create(SHORT, name="raven", metadata={"k": "v"})


@pytest.fixture(scope="module")
def exported(made: Made, row: ContextRow) -> bytes:
    return b"".join(portable.export(made.library, row, KEY))


def take_in(made: Made, path: Path, tenant: str, *, trusted: bool = True) -> ContextRow:
    """As the service does it."""
    with PortableFile(path) as file:
        wish = Wanted(tenant=tenant, definition=file.definition(), summaries=False)
        file.check()
        row, unread = creating.create(made.library, wish)
        if unread:
            trusts = {public_hex(KEY)} if trusted else set()
            portable.take_kv(made.library, tenant, file, trusts.__contains__)
            made.reader.take(row)
    return made.ended(row)


def opened_file(tmp_path: Path, data: bytes) -> None:
    """All that is done before anything is believed. Raises ``BadFile``."""
    path = tmp_path / "file"
    path.write_bytes(data)
    check(path)


def check(path: Path) -> None:
    with PortableFile(path) as file:
        file.definition()
        file.check()


def split(data: bytes) -> tuple[list[bytes], dict[str, Any]]:
    """Parts and manifest of a file that is well-formed."""
    length = int.from_bytes(data[-16:-8], "little")
    end = len(data) - SIGNATURE - LENGTH - len(MAGIC) - length
    at, parts = len(MAGIC), []
    while at < end:
        size = int.from_bytes(data[at : at + LENGTH], "little")
        parts.append(data[at + LENGTH : at + LENGTH + size])
        at += LENGTH + size
    return parts, json.loads(data[end : end + length])


def joined(
    parts: list[bytes], about: dict[str, Any] | bytes, key: Ed25519PrivateKey = KEY
) -> bytes:
    """A file of them, rightly signed."""
    manifest = about if isinstance(about, bytes) else json.dumps(about).encode()
    body = MAGIC + b"".join(len(p).to_bytes(LENGTH, "little") + p for p in parts)
    return (
        body + manifest + key.sign(MAGIC + manifest) + len(manifest).to_bytes(8, "little") + MAGIC
    )


def described(parts: list[bytes], about: dict[str, Any]) -> dict[str, Any]:
    told = [
        {"kind": "kv" if n else "text", "bytes": len(p), "sha256": hashlib.sha256(p).hexdigest()}
        for n, p in enumerate(parts)
    ]
    return {**about, "parts": told}


def test_a_file_brings_text_and_kv(made: Made, exported: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(exported)
    theirs = take_in(made, path, "b")
    assert theirs.computed_tokens == 0
    assert theirs.reused_tokens == theirs.tokens
    with PortableFile(path) as file:
        assert file.about["name"] == "raven"
        assert file.about["metadata"] == {"k": "v"}
        assert file.signer == public_hex(KEY)


def test_nothing_in_it_says_whose_it_was(made: Made, exported: bytes, row: ContextRow) -> None:
    namespace = made.library.namespace_of("a")
    for secret in (namespace, namespace.hex().encode(), row.id.encode(), b'"tenant"'):
        assert secret not in exported


def test_the_kv_of_a_signer_who_is_not_trusted_is_computed_anew(
    made: Made, exported: bytes, tmp_path: Path
) -> None:
    parts, about = split(exported)
    path = tmp_path / "file"
    path.write_bytes(joined(parts, {**about, "signer": public_hex(OTHER)}, OTHER))
    theirs = take_in(made, path, "c")
    assert theirs.status == "completed"
    assert theirs.computed_tokens == theirs.tokens
    path.write_bytes(exported)
    assert take_in(made, path, "d", trusted=False).reused_tokens == 0


def test_every_byte_of_it_matters(exported: bytes, tmp_path: Path) -> None:
    """Flipped one after the other, each is noticed before anything is done with the file."""
    assert len(exported) < 60_000
    path = tmp_path / "file"
    path.write_bytes(exported)
    descriptor = os.open(path, os.O_RDWR)
    try:
        for at in range(len(exported)):
            os.pwrite(descriptor, bytes([exported[at] ^ (1 << at % 8)]), at)
            with pytest.raises(BadFile):
                check(path)
            os.pwrite(descriptor, exported[at : at + 1], at)
    finally:
        os.close(descriptor)
    opened_file(tmp_path, exported)


def test_any_beginning_of_it_is_refused_and_anything_behind_it(
    exported: bytes, tmp_path: Path
) -> None:
    for length in (*range(0, len(exported), 37), len(exported) - 1):
        with pytest.raises(BadFile):
            opened_file(tmp_path, exported[:length])
    for more in (b"\0", MAGIC, exported, exported[-80:]):
        with pytest.raises(BadFile):
            opened_file(tmp_path, exported + more)


def test_parts_cannot_be_swapped_left_out_or_doubled(exported: bytes, tmp_path: Path) -> None:
    parts, about = split(exported)
    assert len(parts) >= 3
    opened_file(tmp_path, joined(parts, about))
    for others in (parts[::-1], parts[:-1], [*parts, parts[-1]], [parts[0], *parts[:0:-1]]):
        if others != parts:
            with pytest.raises(BadFile):
                opened_file(tmp_path, joined(others, about))


@pytest.mark.parametrize(
    "part",
    [
        {"kind": "text", "bytes": 2**62, "sha256": "0" * 64},
        {"kind": "kv", "bytes": 2**27, "sha256": "0" * 64},
        {"kind": "text", "bytes": -1, "sha256": "0" * 64},
        {"kind": "text", "bytes": float("inf"), "sha256": "0" * 64},
        {"kind": "text", "bytes": "many", "sha256": "0" * 64},
        {"kind": "text", "sha256": "0" * 64},
        {"kind": "kv", "bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()},
        {"kind": "pickle", "bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()},
        "text",
        None,
    ],
    ids=str,
)
def test_sizes_are_compared_before_anything_is_read(
    exported: bytes, tmp_path: Path, part: Any
) -> None:
    parts, about = split(exported)
    with pytest.raises(BadFile):
        opened_file(tmp_path, joined(parts, {**about, "parts": [part]}))
    with pytest.raises(BadFile):
        opened_file(tmp_path, joined(parts, {**about, "parts": [part, *about["parts"]]}))


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"7", b'"x"', b"{", b"\xff", b"[" * 200_000, b'{"a":' * 100_000],
    ids=lambda m: m[:12].decode("latin-1"),
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, manifest: bytes) -> None:
    with pytest.raises(BadFile):
        opened_file(tmp_path, joined([], manifest))


@pytest.mark.parametrize("length", [0, 1, 2**26 + 1, 2**63, 2**64 - 1])
def test_a_manifest_of_another_length_is_refused(
    exported: bytes, tmp_path: Path, length: int
) -> None:
    with pytest.raises(BadFile):
        opened_file(tmp_path, exported[:-16] + length.to_bytes(8, "little") + MAGIC)


@pytest.mark.parametrize("signer", ["", "zz", "00", "0" * 63, "0" * 64, "f" * 64, 7, None, []])
def test_without_a_signature_that_verifies_nothing_is_taken(
    exported: bytes, tmp_path: Path, signer: Any
) -> None:
    parts, about = split(exported)
    with pytest.raises(BadFile, match="signature"):
        opened_file(tmp_path, joined(parts, {**about, "signer": signer}))
    with pytest.raises(BadFile, match="signature"):
        opened_file(tmp_path, joined(parts, about, OTHER))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"layout": 1}',
        b'{"layout": 1, "documents": [], "instructions": 3, "turns": [], "section_tokens": 512}',
        b'{"layout": 1, "documents": 5, "instructions": null, "turns": [], "section_tokens": 512}',
        b'{"layout": 1, "documents": [], "instructions": null, "turns": [], '
        b'"section_tokens": Infinity}',
    ],
    ids=lambda t: t[:14].decode(),
)
def test_a_text_that_anybody_may_sign_is_not_believed_either(
    exported: bytes, tmp_path: Path, text: bytes
) -> None:
    _, about = split(exported)
    about = described([text], {**about, "signer": public_hex(OTHER)})
    with pytest.raises(BadFile):
        opened_file(tmp_path, joined([text], about, OTHER))


def test_kv_of_a_trusted_signer_that_is_no_kv_is_left_out(
    made: Made, exported: bytes, tmp_path: Path
) -> None:
    """Trust is in who signed, not in what came: parcels are checked by the engine once more."""
    parts, about = split(exported)
    path = tmp_path / "file"
    junk = [parts[0], b"\0" * 1000]
    path.write_bytes(joined(junk, described(junk, about)))
    theirs = take_in(made, path, "e")
    assert (theirs.status, theirs.computed_tokens) == ("completed", theirs.tokens)


def test_kv_of_another_text_is_no_kv_of_this_one(made: Made, tmp_path: Path) -> None:
    """A file of two halves, both rightly signed: what is not the text's is not found for it."""
    one = made.create("One text. " * 9)
    other = made.create("Quite another. " * 9)
    ours, about = split(b"".join(portable.export(made.library, one, KEY)))
    theirs, _ = split(b"".join(portable.export(made.library, other, KEY)))
    mixed = [ours[0], *theirs[1:]]
    path = tmp_path / "file"
    path.write_bytes(joined(mixed, described(mixed, about)))
    row = take_in(made, path, "f")
    assert row.computed_tokens >= row.tokens - 40  # all but what all documents begin with


def test_of_one_that_is_not_read_yet_the_text_is_exported(made: Made, tmp_path: Path) -> None:
    row, _ = creating.create(made.library, wanted("Not read. " * 30))
    path = tmp_path / "file"
    path.write_bytes(b"".join(portable.export(made.library, row, KEY)))
    theirs = take_in(made, path, "g")
    assert theirs.computed_tokens == theirs.tokens
    text = made.create("Text alone. " * 30, keep="text")
    path.write_bytes(b"".join(portable.export(made.library, text, KEY)))
    assert take_in(made, path, "g").status == "completed"


def test_one_that_was_deleted_meanwhile_is_not_there(made: Made) -> None:
    """Said before a first byte is sent: nobody takes the beginning of a reply for a file."""
    row = made.create("Deleted. " * 30)
    keeping.delete(made.library, row)
    with pytest.raises(NoContext):
        portable.export(made.library, row, KEY)


def test_a_home_has_one_key_and_keeps_it_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    first = signing_key(path)
    assert public_hex(signing_key(path)) == public_hex(first)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"short")
    with pytest.raises(KvasirError, match="does not hold a signing key"):
        signing_key(path)
