"""`python -m mtop_batch.cli` is the `mtop` command."""

from mtop_batch.cli.commands import main

if __name__ == "__main__":
    main()
