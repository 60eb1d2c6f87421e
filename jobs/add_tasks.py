"""Add tasks to a trained bundle: `mtop add-tasks` as a file for `ray job submit`, with the same options."""

import sys

from mtop_batch.cli.commands import main

if __name__ == "__main__":
    main(["add-tasks", *sys.argv[1:]])
