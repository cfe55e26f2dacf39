from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from condconv.cli.main import main
from condconv.errors import ArgumentError, BusyError
from condconv.files import Lock
from condconv.signals import Interrupted, StopRequest
from condconv.studies import sweep as module
from condconv.studies.study import Study, StudyRow, columns_of, read_rows, read_study
from condconv.studies.sweep import RunFailed, Sweep
from tests.studies.test_study import write_study

# Writes what `condconv train` writes that a sweep reads, and notes each time it is called.
TRAINER = """
import pathlib, signal, sys, time, yaml
option, path = sys.argv[1:]
if option == "--resume":
    run = pathlib.Path(path)
    settings = yaml.safe_load((run / "config.yaml").read_text())
else:
    settings = yaml.safe_load(pathlib.Path(path).read_text())
    run = pathlib.Path(settings["out"]) / (settings["name"] + "-1")
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
with open(pathlib.Path(settings["out"]) / "calls", "a") as calls:
    print(settings.get("variant", "condconv"), settings.get("seed", 0), option, file=calls)
if settings.get("lr") == 9:
    sys.exit("error: the loss is not finite")
lines = [f"{epoch},0.5,0.6,0.{epoch}5,1.5" for epoch in (9, 8)]
header = "epoch,train_loss,val_loss,val_accuracy,seconds"
if settings.get("lr") == 7 and option != "--resume":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    (run / "metrics.csv").write_text(chr(10).join([header, lines[0], ""]))
    time.sleep(60)
(run / "metrics.csv").write_text(chr(10).join([header, *lines, ""]))
(run / "summary.md").touch()
"""
ARMS = {
    "static": {"variant": "none"},
    "condconv": {"variant": "condconv", "num_experts": 4},
    "wide": {"widened_to": "condconv"},
    "same": {"variant": "none"},
    "hot": {"variant": "none", "lr": 9.0},
    "slow": {"variant": "none", "lr": 7.0},
}
Make = Callable[..., Sweep]


@pytest.fixture()
def study(tmp_path: Path) -> Study:
    common = {"output_stride": 4, "limit_train": 64, "limit_val": 50, "epochs": 2}
    return read_study(write_study(tmp_path, arms=ARMS, common=common, claims=[]))


@pytest.fixture()
def make(tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> Make:
    trainer = tmp_path / "trainer.py"
    trainer.write_text(TRAINER)
    monkeypatch.setattr(module, "TRAIN", (sys.executable, str(trainer)))
    monkeypatch.setattr(module, "_POLL_S", 0.02)
    return lambda **arguments: Sweep(study, None, tmp_path / "runs", 1, StopRequest(), **arguments)


def calls(folder: Path) -> list[str]:
    return (folder / "runs" / "calls").read_text().splitlines()


def test_what_a_cluster_runs_one_by_one_is_the_table_of_a_sweep(
    tmp_path: Path, study: Study, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted: list[Sequence[Sequence[str]]] = []
    monkeypatch.setattr("condconv.cli.sweep.submit", lambda calls, *_: submitted.append(calls) or calls)
    words = ["sweep", str(study.path), "--arms", "static", "wide", "--threads", "1", "--out", str(tmp_path / "runs")]
    assert main([*words, "--cluster", "local"]) == 0
    assert "4 runs submitted" in capsys.readouterr().out and not study.finished()
    assert [main(call) for call in submitted[0][1:]] == [0, 0, 0]
    assert main([*words, "--cluster", "local"]) == 0
    assert len(submitted[1]) == 1 and main(submitted[1][0]) == 0
    assert set(study.finished()) == {(arm, seed) for arm in ("static", "wide") for seed in (0, 1)}
    assert main([*words, "--cluster", "local"]) == 0 and len(submitted) == 2


def test_a_finished_run_is_a_row_and_is_not_run_again(tmp_path: Path, study: Study, make: Make) -> None:
    row = make().run(("condconv", 1))
    assert read_rows(study.results, columns_of(study.score)) == [row]
    assert set(study.finished()) == {("condconv", 1)}
    expected = {
        "arm": "condconv", "seed": "1", "experts": "4", "n_train": "64", "n_val": "50", "epochs": "2",
        "top1_pct": "85.00", "best_top1_pct": "95.00", "train_loss": "0.5000", "wall_s": "3", "threads": "1",
    }  # fmt: skip
    assert expected.items() <= row.items()
    assert float(row["ratio"]) > 1 and int(row["macs"]) > 0 and row["machine"] and row["commit"]
    # Its table is gone, its folder is not.
    study.results.unlink()
    assert make().run(("condconv", 1)) == row
    assert calls(tmp_path) == ["condconv 1 --config"]


def test_arms_of_the_same_settings_share_a_run(tmp_path: Path, study: Study, make: Make) -> None:
    sweep = make()
    rows = [sweep.run((arm, 0)) for arm in ("static", "same")]
    assert calls(tmp_path) == ["none 0 --config"]
    assert {**rows[0], "arm": "same"} == rows[1]
    assert len(read_rows(study.results, columns_of(study.score))) == 2


def test_a_widened_arm_has_the_multiply_adds_of_the_other(make: Make) -> None:
    sweep = make()
    rows: dict[str, StudyRow] = {arm: sweep.run((arm, 0)) for arm in ("static", "condconv", "wide")}
    assert rows["wide"]["variant"] == "none"
    assert abs(int(rows["wide"]["macs"]) / int(rows["condconv"]["macs"]) - 1) <= 0.02
    assert float(rows["wide"]["ratio"]) == pytest.approx(float(rows["condconv"]["ratio"]), rel=0.02)
    assert rows["static"]["ratio"] == "1.0000"


def test_a_run_that_fails_says_why_and_leaves_no_row(study: Study, make: Make) -> None:
    with pytest.raises(RunFailed, match=r"error: the loss is not finite \(exit code 1; .*\.log\)"):
        make().run(("hot", 0))
    assert not study.results.exists()


def test_asked_to_stop_it_ends_the_run_and_goes_on_with_it_later(tmp_path: Path, study: Study, make: Make) -> None:
    seen = []

    def stop_after_an_epoch(done: int, total: int) -> None:
        seen.append((done, total))
        if done:
            stopped.stop.signum = signal.SIGINT

    stopped = make(progress=stop_after_an_epoch)
    with pytest.raises(Interrupted):
        stopped.run(("slow", 0))
    assert seen[-1] == (1, 2) and not study.results.exists()
    assert make().run(("slow", 0))["top1_pct"] == "85.00"
    assert calls(tmp_path) == ["none 0 --config", "none 0 --resume"]


def test_a_run_in_other_hands_is_left_to_them(tmp_path: Path, make: Make) -> None:
    sweep = make()
    name = sweep.config("static", 0).run_name
    (tmp_path / "runs").mkdir(exist_ok=True)
    with Lock(tmp_path / "runs" / f"{name}.lock", name), pytest.raises(BusyError, match=f"{name}: in use by process"):
        sweep.run(("static", 0))
    sweep.run(("static", 0))


def test_the_data_is_the_studys(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, data="some-images"))
    with pytest.raises(ArgumentError, match="--data is missing; .* is about some-images"):
        Sweep(study, None, tmp_path, 1, StopRequest())
    with pytest.raises(ArgumentError, match="pass the folder of that name"):
        Sweep(study, "digits", tmp_path, 1, StopRequest())
    assert Sweep(study, "/x/some-images/", tmp_path, 1, StopRequest()).data == "/x/some-images/"


@pytest.mark.slow
def test_the_command_with_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = {"limit_train": 32, "limit_val": 16, "epochs": 1, "batch_size": 16, "num_experts": 2, "device": "cpu"}
    path = write_study(tmp_path, common=common, routing_checks=True, seeds=[3])
    words = ["sweep", str(path), "--arms", "condconv", "--threads", "1", "--out", str(tmp_path / "runs")]
    assert main(words) == 0
    (row,) = read_study(path).finished().values()
    assert (row["seed"], row["n_train"], row["experts"]) == ("3", "32", "2")
    assert all(0 <= float(row[f"{name}_pct"]) <= 100 for name in ("top1", "mean", "argmax", "shuffle"))
    assert f"[1/1] condconv seed 3: top-1 {row['top1_pct']} %" in capsys.readouterr().out
    assert main(words) == 0
    assert "1 of 1 runs are done" in capsys.readouterr().out
