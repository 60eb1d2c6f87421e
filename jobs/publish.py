"""Show readers what the store has for a bundle: `mtop publish` for `ray job submit`, with the same options."""

import sys

from mtop_batch.cli.commands import main

if __name__ == "__main__":
    main(["publish", *sys.argv[1:]])
