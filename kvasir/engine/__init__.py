"""The loop that serves requests: engine, runner, sampler, client, and what wires them."""
