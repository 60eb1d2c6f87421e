"""Measure a bundle on evaluation data: `mtop evaluate` as a file for `ray job submit`, with the same options."""

import sys

from mtop_batch.cli.commands import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
