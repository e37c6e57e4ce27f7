"""Text in, token ids out, and back: tokenizer, chat template, transcripts, streaming. No torch."""
