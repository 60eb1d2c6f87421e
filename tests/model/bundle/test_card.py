from __future__ import annotations

from mtop_batch.families import EncoderPasses
from mtop_batch.model.bundle.card import model_card
from mtop_batch.tasks import Task

LIMITS = {"max_tokens": 128, "max_windows": 1, "window_overlap": 0}


def test_of_a_thousand_tasks_the_card_has_the_best_and_the_worst() -> None:
    tasks = [Task(f"task_{number:03}") for number in range(1000)]
    metrics = {task.name: {"accuracy": number / 1000} for number, task in enumerate(tasks)}
    config = {"task": [{"name": task.name} for task in tasks], "train": {"epochs": 5}}
    card = model_card("many", "mtop", tasks, metrics, config, "tiny", LIMITS, EncoderPasses())
    assert "One `mtop` model for 1,000 tasks" in card
    assert "| task_999 |" in card
    assert "| task_000 |" in card
    assert "| task_500 |" not in card
    assert "| ... 980 more, in `metrics.json` |" in card
    assert '"task": "1,000 tasks, in training.json"' in card
    assert card.count("\n") < 100


def test_the_card_of_a_few_tasks_has_all_and_their_configuration() -> None:
    tasks = [Task(name) for name in ("topic", "mood")]
    card = model_card("few", "mtop", tasks, {}, {"task": [{"name": "topic"}]}, "tiny", LIMITS, EncoderPasses())
    assert "| topic |" in card
    assert "| mood |" in card
    assert "more, in" not in card
    assert '"name": "topic"' in card


def test_of_many_labels_and_many_tasks_of_a_family_the_card_names_some() -> None:
    labels = tuple(f"label_{number:03}" for number in range(150))
    tasks = [Task(f"task_{number:03}", labels=labels) for number in range(30)]
    passes = EncoderPasses(num_layers=6, layers={"topics": 2}, family_of={task.name: "topics" for task in tasks})
    card = model_card("many", "mtop", tasks, {}, {}, "tiny", LIMITS, passes)
    assert "label_000, label_001, " in card
    assert "and 130 more" in card
    assert "and 10 more" in card
    assert max(map(len, card.splitlines())) < 500
