"""Everything that turns text into tokens and back for one model, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from kvasir.text.template import ChatTemplate
from kvasir.text.tokenizer import Tokenizer
from kvasir.text.transcript import Transcripts


@dataclass(frozen=True, slots=True)
class TextCodec:
    """``template`` is None for a model without one: it completes text but cannot chat."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    transcripts: Transcripts
