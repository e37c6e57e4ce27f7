"""`python -m kvasir` is the `kvasir` command."""

from kvasir.cli.main import app

if __name__ == "__main__":
    app(prog_name="kvasir")
