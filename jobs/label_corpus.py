"""Make every wanted cell of a corpus current: `mtop label` as a file for `ray job submit`, with the same options."""

import sys

from mtop_batch.cli.commands import main

if __name__ == "__main__":
    main(["label", *sys.argv[1:]])
