from __future__ import annotations

from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.training.optimizer import freeze_backbone, freeze_word_embeddings, make_optimizer, set_learning_rates
from mtop_batch.training.schedules import RateFactors
from mtop_batch.training.settings import TrainSettings
from tests.training.toy import make_model


def settings_of(model: MTOPModel, settings: TrainSettings) -> dict[str, tuple[float, float]]:
    """The peak rate and the weight decay that each parameter trains with, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimizer(model, settings).param_groups
    return {names[id(p)]: (group["peak_lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_biases_norms_and_prompts_do_not_decay() -> None:
    found = settings_of(make_model(), TrainSettings(weight_decay=0.1))
    still = {name for name, (_, decay) in found.items() if decay == 0}
    assert still == {name for name in found if name.endswith(("bias", "LayerNorm.weight", "prompts"))}
    assert "task_modules.task_sport.prompts" in still


def test_prompts_of_a_prompt_group_do_not_decay_and_kernels_of_low_rank_do() -> None:
    model = make_model(prompt_groups={"sport": "a", "mood": "a"}, pooler_rank=3)
    found = settings_of(model, TrainSettings(weight_decay=0.1))
    assert found["prompt_groups.group_a.prompts"][1] == 0
    assert found["task_modules.task_sport.pooler.down.weight"][1] == 0.1


def test_prompts_poolers_and_heads_can_have_a_rate_of_their_own() -> None:
    found = settings_of(make_model(), TrainSettings(learning_rate=1e-5, head_learning_rate=1e-3))
    assert all((rate == 1e-5) == name.startswith("backbone.") for name, (rate, _) in found.items())
    assert {rate for rate, _ in settings_of(make_model(), TrainSettings(learning_rate=1e-5)).values()} == {1e-5}


def test_factors_apply_to_the_rates_of_the_encoder_and_of_the_rest() -> None:
    optimizer = make_optimizer(make_model(), TrainSettings(learning_rate=1e-5, head_learning_rate=1e-3))
    set_learning_rates(optimizer, RateFactors(backbone=0.5, heads=0.25))
    assert {group["lr"] for group in optimizer.param_groups} == {5e-6, 2.5e-4}


def test_frozen_parameters_do_not_train() -> None:
    model = make_model()
    freeze_word_embeddings(model)
    assert "backbone.embeddings.word_embeddings.weight" not in settings_of(model, TrainSettings())
    freeze_backbone(model)
    assert all(name.startswith("task_modules.") for name in settings_of(model, TrainSettings()))
