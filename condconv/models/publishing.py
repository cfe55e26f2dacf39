"""Networks on the Hugging Face hub: what `save_pretrained` writes, with a card, in a repository."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from condconv import arguments
from condconv.errors import CheckpointError, argument_error
from condconv.models.saving import is_hub_id, save_pretrained


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool = False,
    input_size: tuple[int, ...] | None = None,
    metrics: Mapping[str, float] | None = None,
    data: str = "",
    license: str = "",
) -> str:
    """Upload a network to the Hugging Face hub, from where ``condconv.from_pretrained(repo_id)`` makes it again.

    You must be logged in: ``hf auth login``, or the environment variable ``HF_TOKEN``.

    Args:
        model: as in `condconv.save_pretrained`, which writes the files.
        repo_id: ``owner/name``; the repository is made where it does not exist.
        private: whether a repository that is made now is private.
        input_size: see `condconv.save_pretrained`, as for the arguments that follow; they are for the model card.
        metrics: what was measured, by name.
        data: what it was trained on.
        license: of the weights.

    Returns:
        The address of the commit.

    Raises:
        ArgumentError: ``repo_id`` is no ``owner/name``.
        CheckpointError: the network cannot be saved, or the hub refuses or cannot be reached; nothing is uploaded.
    """
    arguments.text("push_to_hub", "repo_id", repo_id)
    if not is_hub_id(repo_id):
        raise argument_error("push_to_hub", "repo_id", repo_id, "is no repository", "write it as owner/name")
    arguments.boolean("push_to_hub", "private", private)
    from huggingface_hub import HfApi

    api: Any = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(
            model, Path(folder), input_size=input_size, metrics=metrics, data=data, license=license
        )  # fmt: skip
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message="Weights, configuration and card, by condconv",
                ignore_patterns=[".*"],
            )  # fmt: skip
        except Exception as error:  # of the hub, of its HTTP library, of the network: there is no kind of all of them
            reason = " ".join(str(error).split())
            raise CheckpointError(f"push_to_hub: {repo_id}: {reason}; log in with: hf auth login") from error
    return str(commit.commit_url)
