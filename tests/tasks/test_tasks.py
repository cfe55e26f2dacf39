"""What every task promises, over all that are there."""

from __future__ import annotations

import pytest

from condconv.errors import ArgumentError, UnknownNameError
from condconv.runs.config import TrainConfig
from condconv.runs.metrics import columns
from condconv.tasks import score_of, task_of, tasks


@pytest.mark.parametrize("name", tasks())
def test_a_task_says_what_others_ask_of_it(name: str) -> None:
    task = task_of(TrainConfig(data="somewhere", task=name))
    assert task.name == name and task.score is score_of(name)
    assert task.score.column in task.validation_columns
    assert task.score.train_column in (None, *task.training_columns)
    assert len(set(columns(task))) == len(columns(task))
    for field in ("loss_title", "predictions", "left_out", "evaluates"):
        assert getattr(task, field)


@pytest.mark.parametrize("name", tasks())
def test_settings_of_other_tasks_are_refused(name: str) -> None:
    unused = task_of(TrainConfig(data="somewhere", task=name)).unused
    given = {"mixup": 0.2, "degradations": "blur", "detection_loss": "focal"}
    for setting in given.keys() & set(unused):
        with pytest.raises(ArgumentError, match=f"{setting}=.* says nothing to --task {name}"):
            task_of(TrainConfig(data="somewhere", task=name, **{setting: given[setting]}))


def test_unknown_names_have_a_closest_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'restore'"):
        task_of(TrainConfig(data="somewhere", task="restor"))
    with pytest.raises(UnknownNameError, match="did you mean 'classify'"):
        score_of("clasify")
