from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from condconv import __version__
from condconv.cli.main import VERBS, main
from tests.cli.runner import SMALL, condconv, metrics, quick, same_weights, signal_in_step
from tests.data.writers import write_folder_set

Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run in this process, check that it exits with 2 and that the error is one line; return it."""

    def run(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("trian",), "unknown command 'trian'; did you mean 'train'"),
        (("train", "--epoch", "3"), "unknown option '--epoch'; did you mean '--epochs'"),
        (("train", "--data", "fashion-minst"), "did you mean 'fashion-mnist'"),
        (("train", "--data", "digits", "--variant", "condconf"), "did you mean 'condconv'"),
        (("train", "--data", "digits", "--model", "mobilnetv1_025"), "did you mean 'mobilenetv1_025'"),
        (("train", "--data", "digits", "--precision", "bf61"), "did you mean 'bf16'"),
        (("train", "--data", "digits", "--device", "cdua"), "did you mean 'cuda'"),
        (("train", "--data", "digits", "--epochs", "0"), "epochs=0 must be at least 1"),
        (("train", "--data", "digits", "--epochs", "many"), "--epochs: many is not a whole number"),
        (("train", "--data", "digits", "--num-experts", "-1"), "num_experts=-1 must be at least 1"),
        (("train", "--data", "digits", "--lr", "0"), "lr=0.0 must be positive"),
        (("train", "--data", "digits", "--name", "a/b"), "name='a/b' must be a plain folder name"),
        (("shard", "images", "shards"), "unexpected argument 'shards'; known options: --help, --out"),
        (("train",), "--data is missing"),
    ],
)
def test_wrong_arguments_are_explained_in_one_line(
    fails: Fails, arguments: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    out = ("--out", str(tmp_path)) if arguments[0] == "train" else ()
    assert expected in fails(*arguments, *out)
    assert not list(tmp_path.iterdir())


def test_wrong_settings_in_a_file(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("data: digits\nepoch: 3\n")
    assert "unknown setting 'epoch'; did you mean 'epochs'" in fails("train", "--config", str(path))


def test_missing_data_and_runs(fails: Fails, tmp_path: Path) -> None:
    assert "no such folder" in fails("train", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path))
    assert "no unfinished run" in fails("train", "--resume", "--out", str(tmp_path))
    assert "no such run folder" in fails("train", "--resume", "lost", "--out", str(tmp_path))


def test_every_verb_answers_help() -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit) as caught:
            main([verb, "--help"])
        assert caught.value.code == 0


# What is drawn for each image.
MIXED = (*SMALL, "--mixup", "0.2", "--auto-augment", "trivial")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    done = condconv("train", *MIXED, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return out / "small-1"


def test_the_installed_command() -> None:
    command = [str(Path(sys.executable).with_name("condconv")), "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"condconv {__version__}\n"), done.stderr


def test_a_run_folder_is_complete(whole: Path) -> None:
    assert yaml.safe_load((whole / "config.yaml").read_text())["variant"] == "dynamic_convolution"
    rows = metrics(whole)
    assert [(row["network"], row["epoch"]) for row in rows] == [("conditional", "1"), ("conditional", "2")]
    # Annealed over half of this short run, and never stepped past it.
    assert float(rows[0]["temperature"]) == float(rows[1]["temperature"]) == 1.0
    assert 0 < float(rows[0]["router_entropy"]) <= 1
    for picture in ("learning_curves", "confusion_matrix", "routing"):
        assert (whole / f"{picture}.png").read_bytes()[:4] == b"\x89PNG"
    summary = (whole / "summary.md").read_text()
    assert "| conditional |" in summary and "report.html" not in summary and not (whole / "report").exists()
    with safe_open(whole / "conditional.safetensors", "pt") as weights:
        metadata = weights.metadata()
    assert json.loads(metadata["classes"]) == [str(digit) for digit in range(10)]
    assert not list(whole.rglob("*.tmp"))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_asked_to_stop_it_resumes_at_the_position_inside_the_epoch(
    whole: Path, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    # With two workers, which changes nothing about the results.
    arguments = ("train", *MIXED, "--out", str(tmp_path), "--workers", "2")
    # The signal goes to the loader processes too, as from a terminal or a scheduler.
    stopped = condconv(*arguments, prepare=[os.setsid, partial(signal_in_step, signum, 1, 3, group=True)])
    run, output = tmp_path / "small-1", stopped.stdout + stopped.stderr
    assert stopped.returncode == code, output
    assert f"condconv train --resume {run}" in output
    assert "Traceback" not in output
    position = torch.load(run / "checkpoints" / "conditional.ckpt", weights_only=True)["SourceDataModule"]
    assert position == {"epoch": 1, "position": 4 * 8}  # the step in which the signal came was finished
    done = condconv("train", "--resume", str(run), prepare=[quick])
    assert done.returncode == 0, done.stderr
    assert metrics(run) == metrics(whole)
    assert same_weights(run, whole, "conditional")


def test_a_resumed_run_keeps_its_settings(whole: Path, tmp_path: Path, fails: Fails) -> None:
    run = tmp_path / "small-1"
    shutil.copytree(whole, run)
    (run / "summary.md").unlink()
    error = fails("train", "--resume", str(run), "--model", "cifar_resnet14")
    assert "--model='cifar_resnet14': the run to resume was started with 'cifar_resnet8'" in error


def test_a_checkpoint_of_another_model_is_refused(whole: Path, tmp_path: Path, fails: Fails) -> None:
    run = tmp_path / "small-1"
    shutil.copytree(whole, run)
    (run / "summary.md").unlink()
    checkpoint_path = run / "checkpoints" / "conditional.ckpt"
    intact = checkpoint_path.read_bytes()
    checkpoint = torch.load(checkpoint_path, weights_only=True)
    checkpoint["state_dict"]["network.fc.weight"] = torch.zeros(3, 5)
    torch.save(checkpoint, checkpoint_path)
    assert "another model; network.fc.weight is (3, 5)" in fails("train", "--resume", str(run))
    checkpoint_path.write_bytes(intact[: len(intact) // 2])
    assert "truncated or damaged" in fails("train", "--resume", str(run))
    torch.save({"weights": torch.zeros(3)}, checkpoint_path)
    assert "not a checkpoint of 'condconv train'" in fails("train", "--resume", str(run))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**settings, "num_experts": 3}))
    checkpoint_path.write_bytes(intact)
    assert "another run (num_experts 2 there, 3 here)" in fails("train", "--resume", str(run))


def full_disk() -> None:
    """A write beyond 100 kB fails as it does on a full disk: with an error in the middle of the file."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    done = condconv("train", *SMALL, "--out", str(tmp_path), prepare=[full_disk])
    assert done.returncode == 2
    assert "conditional-best.safetensors: could not be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "small-1" / "checkpoints").iterdir())


def test_an_unwritable_folder(tmp_path: Path, fails: Fails) -> None:
    # A file in the way stops root as well, which permissions would not.
    (tmp_path / "file").touch()
    error = fails("train", *SMALL, "--out", str(tmp_path / "file" / "runs"))
    assert "--out" in error and "the run folder cannot be made" in error


def test_damaged_images_are_skipped_when_asked(tmp_path: Path, fails: Fails) -> None:
    data = tmp_path / "data"
    write_folder_set(data)
    bad = data / "train" / "dog" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    arguments = (
        "train", "--data", str(data), "--variant", "none", "--output-stride", "8", "--epochs", "1", "--workers", "0",
        "--batch-size", "128", "--device", "cpu", "--out", str(tmp_path / "runs"),
    )  # fmt: skip
    assert f"{bad}: cannot be decoded" in fails(*arguments)
    assert not list((tmp_path / "runs").iterdir()), "a run that did not start leaves nothing"
    done = condconv(*arguments, "--skip-bad-images", "--name", "skipped", prepare=[quick])
    assert done.returncode == 0, done.stderr
    assert "notice: skipped 1 damaged samples" in done.stdout
    assert "notice: --batch-size 128 is larger than the training set of 8 images; reduced to 8" in done.stdout
    assert f"* {bad}: cannot be decoded" in (tmp_path / "runs" / "skipped-1" / "summary.md").read_text()


def test_twins_are_trained_beside_and_runs_never_overwritten(tmp_path: Path) -> None:
    arguments = (
        "--epochs", "1", "--limit-train", "64", "--variant", "condconv", "--num-experts", "32", "--twin",
        "--out", str(tmp_path), "--conditions", "plain,inverted", "--report",
    )  # fmt: skip
    (tmp_path / "small-1").mkdir()
    (tmp_path / "small-1" / "mine.txt").write_text("not to be overwritten")
    done = condconv("train", *SMALL, *arguments, prepare=[quick])
    assert done.returncode == 0, done.stderr
    run = tmp_path / "small-2"
    assert [row["network"] for row in metrics(run)] == ["conditional", "static", "widened"]
    summary = (run / "summary.md").read_text()
    macs = {
        cells[1].strip(): int(cells[5].strip().replace(",", ""))
        for line in summary.splitlines()
        if len(cells := line.split("|")) == 12 and cells[1].strip() in ("conditional", "static", "widened")
    }
    assert macs["static"] < macs["conditional"]
    assert abs(macs["widened"] / macs["conditional"] - 1) <= 0.02
    assert "**Warning:**" in summary
    under = summary[summary.index("| condition | conditional | static | widened |") :].splitlines()[2:4]
    assert [line.split("|")[1].strip() for line in under] == ["plain", "inverted"]
    assert "What routing did: on 20 validation images" in done.stdout and f"{run}/report/" in done.stdout
    following = done.stdout[done.stdout.index("next:") :].splitlines()[1:4]
    assert len(following) == 3 and all(line.split()[0].endswith("condconv") for line in following)
    assert f"condconv eval {run} " in following[0]
    assert "notice: the conditional network has" in done.stdout and "--max-overhead 0.05" in done.stdout
    assert [path.name for path in (tmp_path / "small-1").iterdir()] == ["mine.txt"]


def test_small_images_without_a_model_get_their_recipe(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path), "--name", "mine", "--limit-val", "20", "--no-report")
    done = condconv("train", "--data", "digits", "--fast-dev-run", *out, prepare=[quick])
    assert done.returncode == 0, done.stderr
    assert "notice: images of 8 pixels, no --model: recipe small_images" in done.stdout
    config = yaml.safe_load((tmp_path / "mine-fast-1" / "config.yaml").read_text())
    assert (config["recipe"], config["model"], config["num_experts"]) == ("small_images", "cifar_resnet8", 8)


def test_a_named_model_or_recipe_or_larger_images_stay_without_it() -> None:
    for flags in (("--model", "resnet10"), ("--recipe", "fashion_mnist_dynamic"), ("--input-size", "64")):
        done = condconv("train", "--data", "digits", "--max-overhead", "-1", *flags)
        assert done.returncode == 2 and "small_images" not in done.stdout
        assert "max_overhead=-1.0 must be positive and finite" in done.stderr
