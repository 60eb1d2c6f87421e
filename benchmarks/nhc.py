"""The result of a training on the news set, from its bundle: metrics of every task, mean, time, speed.

mtop train --config jobs/nhc-cpu.toml
python benchmarks/nhc.py models/nhc-cpu
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from results_file import write_result


def main() -> None:
    """Write `results/<name of the bundle>.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    bundle = parser.parse_args().bundle
    events = [json.loads(line) for line in (bundle / "training.jsonl").read_text().splitlines()]
    metrics = json.loads((bundle / "metrics.json").read_text())
    end = events[-1]
    result = {
        "mean": end["mean"],
        "seconds": end["seconds"],
        "examples_per_s": end["examples_per_s"],
        "mean_after_epoch": {f"{e['epoch']:g}": e["mean"] for e in events if e["event"] == "evaluation"},
        "metrics": metrics,
        "resources": events[0]["resources"],
        "config": json.loads((bundle / "training.json").read_text()),
    }
    print(f"mean {result['mean']:.4f} in {result['seconds']:.0f} s")
    print(f"wrote {write_result(bundle.name, result)}")


if __name__ == "__main__":
    main()
