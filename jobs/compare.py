"""Compare two bundles on a sample of a corpus: `mtop compare` for `ray job submit`, with the same options."""

import sys

from mtop_batch.cli.commands import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
