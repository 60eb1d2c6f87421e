"""Yes/no tasks from the headlines of the News Category Dataset, one for each of some of its categories.

`mtop build-nhc` makes the paper's seven; the benchmarks that add tasks to a model of these need others.

    python benchmarks/topics.py --source huffpost --output data/topics [--categories COMEDY "FOOD & DRINK" ...]
        [--positives 1000] [--eval-fraction 0.3] [--seed 0]
"""

from __future__ import annotations

import argparse
import re

from mtop_batch.data.sets.nhc import build_nhc

CATEGORIES = ("COMEDY", "SPORTS", "FOOD & DRINK", "CRIME", "BUSINESS", "RELIGION", "TECH", "WEDDINGS")


def main() -> None:
    """Write `<output>/tasks.toml` and the tasks' Parquet files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="as for `mtop build-nhc`")
    parser.add_argument("--output", default="data/topics")
    parser.add_argument("--categories", nargs="+", default=CATEGORIES)
    parser.add_argument("--positives", type=int, default=1000, help="of a task at most; there are as many negatives")
    parser.add_argument("--eval-fraction", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts = build_nhc(
        arguments.source,
        arguments.output,
        topics={re.sub(r"\W+", "_", category.lower()): category for category in arguments.categories},
        seed=arguments.seed,
        positives=arguments.positives,
        eval_fraction=arguments.eval_fraction,
    )
    for task, count in counts.items():
        print(f"{task:20} {count['train']:6,} train {count['eval']:6,} eval")


if __name__ == "__main__":
    main()
