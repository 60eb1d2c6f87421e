"""`make bench`: the measurements that need no data and no GPU, one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = ("train_speed.py",)


def main() -> None:
    """Run them; each writes its file under `results/`."""
    for script in SCRIPTS:
        print(f"== {script}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name(script))], check=True)


if __name__ == "__main__":
    main()
