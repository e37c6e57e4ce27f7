"""Files in, text out: every character with its page and offset, sections, quotes, ranking."""
