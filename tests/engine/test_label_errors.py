"""What a labelling run says when a stage has failed for good."""

from __future__ import annotations

from typing import NoReturn

import pytest
import ray

from mtop_batch.engine.labelling.label import _cause, _explained
from mtop_batch.engine.labelling.pipeline import _configure_ray_data
from mtop_batch.errors import JobError, LabelTableError, MtopError

MESSAGE = "s3://news/labels cannot be reached: no answer;\ncheck that the service runs"


def fail(_: object) -> NoReturn:
    raise LabelTableError(MESSAGE)


@pytest.mark.usefixtures("ray_local")
def test_an_error_of_ours_comes_back_as_it_was_raised_without_what_ray_data_appends() -> None:
    _configure_ray_data()
    with pytest.raises(Exception, match="cannot be reached") as raised:
        ray.data.range(1).map(fail).materialize()
    explained = _explained(raised.value, "...")
    assert type(explained) is LabelTableError
    assert str(explained) == MESSAGE


def test_any_other_error_fails_the_job_and_says_what_to_do() -> None:
    error: MtopError = _explained(ValueError("boom"), "ValueError: boom")
    assert type(error) is JobError
    assert str(error) == "the job failed: ValueError: boom; what was written stays, and the same command does the rest"
    assert _cause(ValueError("boom")).args == ("boom",)
