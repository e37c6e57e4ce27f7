"""Chat templates: messages to the text that a model was trained on, whatever the template does.

A template is a program that came with the weights. It runs in ``render_child``, a process of its
own with limits of CPU time and memory, at load (``check_template``) as well as for every request: a
template may behave until it sees a certain message. When it oversteps a limit the process ends, the
request fails, and the next one gets a new process. Invariant: no template stops or starves the
server.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvasir.core.errors import TemplateError
from kvasir.text import render_child
from kvasir.text.render_child import LENGTH_BYTES, READY, cpu_s

_CHILD = Path(render_child.__file__)
_START_S = 60.0  # an interpreter on a busy machine
_MAX_REPLY_BYTES = 64 * 2**20  # and 32 times the messages
_KEPT_ENVIRONMENT = ("PATH", "TZ", "LANG", "LC_ALL", "LC_TIME", "LD_LIBRARY_PATH")

_PROBE = "Hello"
_PROBES: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("user", "assistant", "user"),
    ("system", "user"),
)


class ChatTemplate:
    """A model's chat template in the language of jinja2, with the names that transformers gives it:
    ``messages``, ``add_generation_prompt``, ``bos_token``, ``eos_token``. Thread-safe."""

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        self._source = source
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._process: _Process | None = None  # started when first needed
        self._lock = threading.Lock()

    def render(
        self, messages: Sequence[Mapping[str, object]], *, generation_prompt: bool = True
    ) -> str:
        """The text of ``messages``, and of the beginning of the answer to them.

        Raises ``TemplateError`` where the template refuses the messages (roles that it does not
        know, or not in this order), fails, or oversteps its limits.
        """
        variables = {
            "messages": list(messages),
            "add_generation_prompt": generation_prompt,
            **self._tokens,
        }
        with self._lock:
            if self._process is None or not self._process.alive:
                self._process = _Process(self._source)
            return self._process.ask({"variables": variables})

    def close(self) -> None:
        """End the process that renders; a later ``render`` starts another."""
        with self._lock:
            if self._process is not None:
                self._process.end()
                self._process = None


def check_template(source: str, *, bos: str = "", eos: str = "") -> None:
    """Render short conversations once and raise ``TemplateError`` where ``source`` is not usable.

    A conversation of one user message must render and its text must come out. Longer ones, and one
    with a system message, may be refused by the template but may not overstep the limits.
    """
    template = ChatTemplate(source, bos=bos, eos=eos)
    try:
        for roles in _PROBES:
            messages = [{"role": role, "content": _PROBE} for role in roles]
            try:
                text = template.render(messages)
            except _Ended:
                raise
            except TemplateError:
                if roles == _PROBES[0]:
                    raise
            else:
                if roles == _PROBES[0] and _PROBE not in text:
                    raise TemplateError(
                        "the model's chat template leaves out the text of a user's message, so the "
                        "model would never see it; use Completions, or a model with another "
                        "template"
                    )
    finally:
        template.close()


class _Ended(TemplateError):
    """The rendering process is gone: it overstepped a limit, or could not be started."""


class _Process:
    """A running ``render_child`` that has been given its template. For one thread at a time."""

    def __init__(self, source: str) -> None:
        try:
            self._child = subprocess.Popen(  # noqa: S603 - a fixed command of our own
                [sys.executable, "-I", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={k: v for k, v in os.environ.items() if k in _KEPT_ENVIRONMENT},
                start_new_session=True,  # a Ctrl-C at the terminal is for the server alone
            )
        except OSError as error:
            raise _Ended(
                f"cannot start the process that renders chat templates: {error.strerror}"
            ) from error
        self.end = weakref.finalize(self, _end, self._child)
        if self._child.stdin is None or self._child.stdout is None:
            raise _Ended("the process that renders chat templates has no pipes")
        self._requests, self._replies = self._child.stdin, self._child.stdout
        try:
            if self._read(len(READY), time.monotonic() + _START_S) != READY:
                raise _Ended("the process that renders chat templates did not start")
            self.ask({"source": source})
        except TemplateError:
            self.end()
            raise

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self.end.alive and self._child.poll() is None

    def ask(self, request: Mapping[str, object]) -> str:
        """The text that comes of ``request``.

        Raises ``TemplateError`` with the template's own complaint, ``_Ended`` where there will be
        no further answer.
        """
        try:
            payload = json.dumps(request).encode("ascii")
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateError(f"the messages cannot be given to a template: {error}") from error
        # the CPU limit is the one that bites; this one is for a machine that gives no CPU at all
        deadline_s = time.monotonic() + 10.0 * (1 + cpu_s(len(payload)))
        try:
            reply = self._exchange(payload, deadline_s)
        except BaseException:  # a Ctrl-C too would leave half an exchange in the pipes
            self.end()
            raise
        if "limit" in reply:
            self.end()
            raise _Ended(f"the model's chat template was stopped: {reply['limit']}")
        if "error" in reply:
            raise TemplateError(
                f"the model's chat template cannot render this conversation: {reply['error']}"
            )
        return reply["text"]

    def _exchange(self, payload: bytes, deadline_s: float) -> dict[str, str]:
        try:
            self._requests.write(len(payload).to_bytes(LENGTH_BYTES, "little") + payload)
            self._requests.flush()
        except OSError:
            raise self._ended() from None
        length = int.from_bytes(self._read(LENGTH_BYTES, deadline_s), "little")
        if length > _MAX_REPLY_BYTES + 32 * len(payload):
            raise _Ended("the model's chat template makes more text than is taken from one")
        reply: dict[str, str] = json.loads(self._read(length, deadline_s))
        return reply

    def _read(self, n_bytes: int, deadline_s: float) -> bytes:
        fd = self._replies.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLHUP)
        data = bytearray()
        while len(data) < n_bytes:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                raise _Ended("the model's chat template did not end in time and was stopped")
            chunk = os.read(fd, min(n_bytes - len(data), 2**20))
            if not chunk:
                raise self._ended()
            data += chunk
        return bytes(data)

    def _ended(self) -> _Ended:
        """Why the process ended by itself."""
        self._child.wait()
        if self._child.returncode == -signal.SIGPROF:
            return _Ended(
                "the model's chat template did not end within its CPU time and was stopped; it "
                "loops, at least for this conversation"
            )
        return _Ended(
            "the process that renders the chat template ended with status "
            f"{self._child.returncode}; the template may need more memory than it may take"
        )


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:  # a half-written request goes down with the process
                continue
