"""A network goes to the hub and comes back; here the hub is a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

import condconv
from condconv.errors import ArgumentError, CheckpointError


def small() -> torch.nn.Module:
    return condconv.create_model("condconv_mobilenetv1_025", num_classes=3, width_multiplier=0.25, num_experts=2).eval()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    class Api:
        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            assert exist_ok
            (tmp_path / repo_id).mkdir(parents=True)

        def upload_folder(self, *, repo_id: str, folder_path: str, **_: Any) -> SimpleNamespace:
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return tmp_path


def test_what_is_pushed_is_the_network_with_a_card_that_the_hub_reads(hub: Path) -> None:
    model, image = small(), torch.rand(1, 3, 64, 64)
    url = condconv.push_to_hub(
        model, "me/tiny", input_size=(3, 64, 64), metrics={"top-1": 0.5}, data="made up", license="Apache-2.0"
    )
    assert url == "https://hub/me/tiny/commit/1"
    assert sorted(path.name for path in (hub / "me" / "tiny").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert torch.equal(condconv.from_pretrained(hub / "me" / "tiny")(image), model(image))
    about = ModelCard.load(hub / "me" / "tiny" / "README.md").data
    assert (about.library_name, about.license) == ("condconv", "apache-2.0")
    assert about.eval_results is not None
    assert (about.eval_results[0].metric_type, about.eval_results[0].metric_value) == ("top-1", 0.5)
    assert about.eval_results[0].dataset_name == "made up"


def test_a_name_that_is_none_and_a_hub_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="repo_id='tiny' is no repository; write it as owner/name"):
        condconv.push_to_hub(small(), "tiny")

    def refuse(*_: object, **__: object) -> None:
        raise LocalTokenNotFoundError("Token is required, but no token found")

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(create_repo=refuse))
    with pytest.raises(CheckpointError, match="me/tiny: Token is required.*; log in with: hf auth login"):
        condconv.push_to_hub(small(), "me/tiny")
    assert issubclass(HfHubHTTPError, OSError)
