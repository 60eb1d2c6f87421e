"""Find tasks that help a task: `mtop select-tasks` as a file for `ray job submit`, with the same options."""

import sys

from mtop_batch.cli.commands import main

if __name__ == "__main__":
    main(["select-tasks", *sys.argv[1:]])
