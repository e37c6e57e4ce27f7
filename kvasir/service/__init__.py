"""HTTP: the OpenAI routes over an engine and a codec. Never reaches torch or the engine's code."""
