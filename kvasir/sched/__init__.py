"""WHO computes what next: sequences, admission, fair shares, plan and commit. Pure Python."""
