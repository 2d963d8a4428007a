"""Runs the command line: ``python -m lightning_explain`` is ``lightning-explain``."""

from lightning_explain.cli.main import app

if __name__ == "__main__":
    app()
