"""Fit what decides labels: `mtop calibrate` as a file for `ray job submit`, with the same options."""

import sys

from mtop_batch.cli.commands import main

if __name__ == "__main__":
    main(["calibrate", *sys.argv[1:]])
