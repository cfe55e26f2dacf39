"""save_pretrained and from_pretrained: round trips, the model card, and files that are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import condconv
from condconv import from_pretrained
from condconv.errors import CheckpointError
from condconv.models import create_model, load_weights, save_pretrained, upcycle
from condconv.routers import PooledLinear

SMALL = {"num_classes": 10, "in_chans": 1, "output_stride": 4}


def small(name: str = "condconv_mobilenetv1_025", **arguments: Any) -> nn.Module:
    model = create_model(name, **(SMALL | arguments))
    with torch.no_grad():
        model(torch.randn(2, 1, 28, 28))  # batch-norm statistics that are not the fresh ones
    return model.eval()


def converted(**how: Any) -> nn.Module:
    return condconv.convert(small("mobilenetv1_025"), **how).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved") / "model"
    metrics = {"top-1 accuracy on Fashion-MNIST": 0.9123}
    return save_pretrained(
        small(), folder, input_size=(1, 28, 28), metrics=metrics, data="Fashion-MNIST", license="Apache-2.0"
    )


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "row": small,
    "row with 3 experts": lambda: small(num_experts=3),
    "static": lambda: small("mobilenetv1_025", width_multiplier=1.07),
    "converted, a router for each block": lambda: converted(num_experts=4, init="fresh"),
    "converted, a router for each layer": lambda: converted(share=None, targets="depthwise"),
    "converted, one router": lambda: converted(share="network"),
    "converted, a router for two blocks": lambda: converted(share=2),
    "converted, dynamic": lambda: converted(variant="dynamic_convolution"),
    "upcycled row": lambda: upcycle("condconv_mobilenetv1_025", small("mobilenetv1_025"), num_experts=2).eval(),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    model = NETWORKS[kind]()
    save_pretrained(model, tmp_path, input_size=(1, 28, 28))
    again = from_pretrained(tmp_path)
    assert not again.training
    x = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_a_temperature_travels_with_the_weights(tmp_path: Path) -> None:
    model = converted(variant="dynamic_convolution")
    for module in model.modules():
        if hasattr(module, "temperature"):
            module.temperature.fill_(7.0)
    save_pretrained(model, tmp_path, input_size=(1, 28, 28))
    temperatures = {float(m.temperature) for m in from_pretrained(tmp_path).modules() if hasattr(m, "temperature")}
    assert temperatures == {7.0}


def test_model_card_says_what_it_is(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    counted = condconv.count(small(), (1, 28, 28))
    for words in (
        "condconv_mobilenetv1_025", "Fashion-MNIST", "0.9123", "Apache-2.0", "1904.04971", "from_pretrained",
        f"{counted.params:,}", f"{counted.macs:,} (convention: paper)", "1×28×28",
    ):  # fmt: skip
        assert words in card


def test_a_hub_id_is_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert from_pretrained("somebody/a-network").num_classes == 10
    assert asked == [("somebody/a-network", "config.json"), ("somebody/a-network", "model.safetensors")]


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 4, "condconv_version": "9.0"}, "format_version=4 is newer .*written by 9.0: upgrade"),
        ({"inference_form": {"rest": "f32"}}, "describes no network that can be built"),
        ({"format_version": "1"}, "format_version='1' must be a whole number"),
        ({"format": "other"}, "not a configuration of this package"),
        ({"name": 3}, "'name' must be a text"),
        ({"name": "condconv_mobilenetv1_25"}, "did you mean .*condconv_mobilenetv1_025"),
        ({"arguments": {"num_classes": -1}}, "num_classes=-1"),
        ({"conversion": {"variant": "condconv"}}, "describes no network that can be built"),
        ({"name": None}, "'name' must be a text"),
        ({"images": {"mean": [0.5]}}, "images: expected input_size, mean, std, label_names, native; got mean"),
    ],
)
def test_config_that_is_refused(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=words) as error:
        from_pretrained(folder)
    assert "config.json" in str(error.value)


def test_config_that_is_missing_or_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        from_pretrained(folder)
    with pytest.raises(CheckpointError, match="no such folder"):
        from_pretrained(folder / "nowhere" / "at" / "all")


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or damaged safetensors file"):
        from_pretrained(folder)


def test_a_pickle_is_refused_without_opening_it(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(folder / "exploded"),)

    for legacy in (True, False):
        torch.save(Bomb(), folder / "model.safetensors", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match="a pickle or torch.save file, which is refused"):
            from_pretrained(folder)
    assert not (folder / "exploded").exists()


def test_weights_that_begin_with_a_pickles_first_byte_load(folder: Path) -> None:
    weights = folder / "model.safetensors"
    state, first = load_file(weights), b""
    for length in range(256):  # of the header, whose length the file begins with
        save_file(state, weights, {"format": "pt", "note": " " * length})
        if (first := weights.read_bytes()[:1]) == b"\x80":
            break
    assert first == b"\x80"
    torch.testing.assert_close(dict(from_pretrained(folder).state_dict()), state)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 10])
def test_something_else_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        from_pretrained(folder)


def test_all_that_does_not_fit_is_listed_and_nothing_is_loaded(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["conv_stem.weight"]
    state["classifier.bank.bias"] = torch.zeros(8, 3)
    state["surplus"] = torch.zeros(2, 5)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        from_pretrained(folder)
    message = str(error.value)
    for words in (
        "missing: conv_stem.weight (8, 1, 3, 3)",
        "extra: surplus (2, 5)",
        "wrong shape: classifier.bank.bias (8, 3), the model has (8, 10)",
        "1 tensors missing, 1 left over, 1 of the wrong shape, 0 of the wrong type; nothing was loaded",
    ):
        assert words in message
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_weights(model, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_static_weights_say_how_to_upcycle_and_upcycle_when_asked(tmp_path: Path) -> None:
    static, model = small("mobilenetv1_025"), small()
    save_file(static.state_dict(), tmp_path / "static.safetensors")
    with pytest.raises(CheckpointError, match=r"load_weights\(model, weights, upcycle=True\)"):
        load_weights(model, tmp_path / "static.safetensors")
    load_weights(model, tmp_path / "static.safetensors", upcycle=True)
    x = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert float((model(x) - static(x)).abs().max() / static(x).abs().max()) < 1e-5
        model.classifier.weight[0] *= 1.5
        assert float((model(x) - static(x)).abs().max() / static(x).abs().max()) > 1e-2
    with pytest.raises(CheckpointError, match="no conditional layer"):
        load_weights(static, static.state_dict(), upcycle=True)


def test_networks_that_no_configuration_describes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not made by create_model.*safetensors\.torch\.save_model"):
        save_pretrained(nn.Linear(2, 2), tmp_path / "a")
    model = small()
    model.extra = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="no longer what create_model.*extra.bias"):
        save_pretrained(model, tmp_path / "a")

    class Mine(PooledLinear):
        pass

    with pytest.raises(CheckpointError, match="router of .* is Mine, which a configuration cannot describe"):
        mine = converted(router=lambda site, slices: Mine(site.in_channels, slices.size))
        save_pretrained(mine, tmp_path / "a")
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        save_pretrained(small(norm_layer=nn.BatchNorm2d), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_written_leaves_nothing_half_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_pretrained(small(), folder, input_size=(1, 28, 28))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_pretrained(small(), folder / "file" / "below", input_size=(1, 28, 28))
