"""The process that renders a model's chat template, apart from the server.

A template is a program that came with somebody's weights. The sandbox keeps it from the machine,
but not from looping for ever or from asking for all memory, at once or only for certain messages;
a process with limits does. Run by ``text.template`` as a fresh interpreter without the server's
environment; speaks length-prefixed JSON on its standard streams and imports nothing of ours.

Invariant: whatever the template does, the answer is an object with "text", "error" or "limit",
or the process ends.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import BinaryIO, NoReturn

import jinja2
from jinja2 import ext, nodes, parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Render = Callable[..., str]

READY = b"R"  # said once, when the interpreter has started
LENGTH_BYTES = 8
BASE_MEMORY_BYTES = 256 * 2**20
MEMORY_PER_BYTE = 32  # of the request: text is four bytes a character where it is not Latin, copied


class _Generation(ext.Extension):
    """``{% generation %}``: marks the assistant's part for training; for us, its body."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def environment() -> ImmutableSandboxedEnvironment:
    """The environment that published chat templates are written for."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, _Generation]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as templates expect it: not escaped for HTML, unlike jinja2's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def cpu_s(request_bytes: int) -> float:
    """Seconds of CPU that a request of this size may take."""
    return 1.5 + request_bytes / 2**20


def _limit(request_bytes: int) -> None:
    """Limit the coming render's CPU time and memory by its request's size.

    The timer counts from now on and ends the process; RLIMIT_CPU would count the whole process.
    """
    signal.setitimer(signal.ITIMER_PROF, cpu_s(request_bytes))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = BASE_MEMORY_BYTES + MEMORY_PER_BYTE * request_bytes
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    # a system that does not limit memory is left to its own devices
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _answer(request: bytes, render: Render | None) -> tuple[dict[str, str], Render | None]:
    """The reply to one request, and the template to render from now on."""
    try:
        _limit(len(request))
        asked = json.loads(request)
        if "source" in asked:
            return {"text": ""}, environment().from_string(asked["source"]).render
        if render is None:
            return {"error": "no template was given"}, None
        return {"text": render(**asked["variables"])}, render
    except MemoryError:
        return {"limit": "it needs more memory than a chat template may take"}, None
    except RecursionError:
        return {"limit": "it calls itself without end"}, None
    except Exception as error:  # anything at all may be wrong with a stranger's program
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}, render


def _exactly(stream: BinaryIO, n_bytes: int) -> bytes:
    data = stream.read(n_bytes)
    if len(data) < n_bytes:
        sys.exit(0)  # the server has gone
    return data


def main() -> None:
    """Answer requests until the standard input ends."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    render: Render | None = None
    replies.write(READY)  # what comes now is the template's own time
    replies.flush()
    while True:
        length = int.from_bytes(_exactly(requests, LENGTH_BYTES), "little")
        reply, render = _answer(_exactly(requests, length), render)
        data = json.dumps(reply).encode("ascii")
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
        replies.flush()


if __name__ == "__main__":
    main()
