"""One module per engine, each with ``load(setup) -> Candidate``; imported in workers only."""
