"""Let an encoder learn from source tasks: `mtop prefinetune` as a file for `ray job submit`, with the same options."""

import sys

from mtop_batch.cli.commands import main

if __name__ == "__main__":
    main(["prefinetune", *sys.argv[1:]])
