"""`ray job submit` with the exit code of the job: `python -m mtop_batch.engine.submit`, with the same arguments.

`ray job submit` itself exits with 1 whatever went wrong, so a scheduler could not tell a run to try again from one that
needs people. Source files that cannot be read are in the report, and make no run fail.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from ray.job_submission import JobSubmissionClient

_UNREADABLE_FILES = 3


def main(arguments: Sequence[str]) -> int:
    """Submit, follow the job to its end, and return its exit code; 0 where only source files could not be read."""
    submitted = subprocess.run(["ray", "job", "submit", *arguments], check=False).returncode
    if submitted == 0:
        return 0
    options = dict(word.split("=", 1) for word in arguments if word.startswith("--") and "=" in word)
    try:
        client = JobSubmissionClient(options.get("--address"))
        code = client.get_job_info(options["--submission-id"]).driver_exit_code
    except Exception as error:  # the cluster is gone, or there is no such job
        print(f"how the job ended is not known: {error}", file=sys.stderr)
        return submitted
    if code == _UNREADABLE_FILES:
        print("some source files could not be read; they are in the run report", file=sys.stderr)
        return 0
    return code or submitted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
