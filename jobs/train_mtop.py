"""Train MTOP on all tasks of a configuration: `mtop train` as a file for `ray job submit`, with the same options."""

import sys

from mtop_batch.cli.commands import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
