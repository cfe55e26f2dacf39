from __future__ import annotations

import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from condconv.devices import resolve_device
from condconv.errors import ArgumentError, BusyError, CheckpointError
from condconv.files import remove_temporaries, write_bytes
from condconv.runs.config import TrainConfig
from condconv.runs.figures import depths
from condconv.runs.folder import RunFolder, find_run
from condconv.runs.networks import find_width
from condconv.signals import Interrupted, StopRequest
from condconv.training.annealing import annealing_steps
from condconv.training.checkpoint import tensor_mismatches
from condconv.training.console import RunConsole, duration
from condconv.training.experiment import Experiment
from tests.processes import run


def test_temperature_is_annealed_over_ten_epochs_or_half_of_a_short_run() -> None:
    assert annealing_steps(TrainConfig(data="digits", epochs=300), 100) == 1000
    assert annealing_steps(TrainConfig(data="digits", epochs=6), 100) == 300
    assert annealing_steps(TrainConfig(data="digits", epochs=1), 1) == 1
    assert annealing_steps(TrainConfig(data="digits", epochs=6, temperature_epochs=5), 100) == 500


def test_find_width_meets_the_target_or_says_why_not() -> None:
    def macs(width: float) -> int:
        return 100 * round(64 * width) ** 2

    assert abs(macs(find_width(macs, 700_000)) / 700_000 - 1) <= 0.02
    with pytest.raises(ArgumentError, match="no width brings the static network within 2%"):
        find_width(lambda width: 1000 if width < 1.2 else 2000, 1500)


def test_depths_count_shared_routing_once_and_span_the_network() -> None:
    means = [torch.rand(3, 4) for _ in range(6)]
    routing = {f"block{i}.{part}": means[i] for i in range(6) for part in ("dw", "pw")}
    assert depths(routing) == ["block0.dw", "block2.dw", "block3.dw", "block5.dw"]


def test_tensor_mismatches_name_each_tensor() -> None:
    found = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    expected = {"a": torch.zeros(2), "b": torch.zeros(4), "d": torch.zeros(1)}
    assert tensor_mismatches(found, expected) == ["b is (3,), expected (4,)", "c is not in the model", "d is missing"]


def write_too_much(path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with pytest.raises(CheckpointError) as caught:
        write_bytes(path, b"x" * 5000)
    print(caught.value)


def test_a_file_is_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"first")
    # A limit on the size of a file fails a write in the middle, as a full disk does.
    done = run(write_too_much, path)
    assert (done.returncode, done.stderr) == (0, "") and "could not be written" in done.stdout
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.ckpt.123.tmp").write_bytes(b"half")
    (tmp_path / "a.ckpt").write_bytes(b"whole")
    remove_temporaries(tmp_path)
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_run_folders_are_numbered_locked_and_found(tmp_path: Path) -> None:
    config = TrainConfig(data="digits", name="run", out=str(tmp_path))
    first, second = RunFolder.create(config), RunFolder.create(config)
    assert (first.path.name, second.path.name) == ("run-1", "run-2")
    with pytest.raises(BusyError, match=f"run-1: in use by process {os.getpid()} on .* since 20"):
        RunFolder.existing(first.path)
    first.close()
    again = RunFolder.existing(first.path)
    assert again.read_config() == config
    os.utime(second.config, (1, 1))
    assert find_run("", str(tmp_path)) == first.path
    first.summary.touch()
    assert find_run("", str(tmp_path)) == second.path
    assert find_run("run-1", str(tmp_path)) == first.path
    for folder in (again, second):
        folder.close()
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match="not a run folder"):
        RunFolder.existing(tmp_path / "other")
    first.config.write_text("data: digits\nunknown: 1\n")
    with pytest.raises(CheckpointError, match="not the settings of a run"):
        first.read_config()


def test_the_default_name_is_a_plain_folder_name() -> None:
    assert TrainConfig(data="../some/my set/").run_name == "my-set-mobilenetv1_025-condconv"


def test_a_stop_request_remembers_the_first_signal() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_request_of_another_thread_leaves_signals_alone() -> None:
    def work() -> int:
        with StopRequest() as stop:
            stop.check()
            return id(signal.getsignal(signal.SIGTERM))

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == id(signal.getsignal(signal.SIGTERM))


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(ArgumentError, match="torch finds no CUDA device"):
        resolve_device("cuda")
    with pytest.raises(ArgumentError, match="float16 training needs a GPU"):
        resolve_device("auto", "16")


def test_a_job_of_slurm_without_torchrun_is_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"NTASKS": "4", "JOB_NAME": "job", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    config = TrainConfig(data="digits", variant="none", base_batch=64, device="cpu", out=str(tmp_path))
    said: list[str] = []
    console = RunConsole(quiet=True)
    monkeypatch.setattr(console, "notice", said.append)
    made = Experiment(config, StopRequest(), console)
    assert said == ["learning rate: 0.1 for 64 images a step, so 0.2 for 128"]
    assert made.trainer([], max_epochs=1).world_size == 1


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61, "1:01"), (3725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
