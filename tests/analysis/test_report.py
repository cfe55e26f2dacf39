"""The report folder: complete, escaped, never overwriting, small enough."""

from __future__ import annotations

import csv
import html.parser
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from condconv.analysis import Analysis, RecordedNetwork, write_report
from condconv.analysis.curves import MEASURED
from condconv.analysis.explorer import explorer_data
from condconv.errors import ArgumentError, DataError, UnknownNameError
from tests.analysis.networks import pictures, random_analysis, synthetic_analysis

HOSTILE = (
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "$\\frac{1}{$ & \"'\u2028\x00 猫",
    "{{ 7 * 7 }}{% raw %}<!--",
)  # fmt: skip


class Elements(html.parser.HTMLParser):
    """Tags with their attributes, all text, and that of the element with id `data`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = self.text = ""
        self._in_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_data = dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_data:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all there is."""
    runs = [RecordedNetwork("run", name, 10, [dict.fromkeys(MEASURED, 1.0)]) for name in ("conditional", "static")]
    return write_report(tmp_path_factory.mktemp("whole") / "report", random_analysis(), images=pictures(), runs=runs)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is the slow part, and not what such a test is about."""
    monkeypatch.setattr("condconv.analysis.report.draw", lambda *arguments: [])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_have_the_numbers(tmp_path: Path, no_figures: None) -> None:
    alpha = torch.tensor([[0.2, 0.8], [0.4, 0.6], [0.9, 0.1]])
    analysis = synthetic_analysis({"block": alpha}, torch.tensor([0, 0, 2]), layers={"block": ("block.dw", "block.pw")})
    folder = write_report(tmp_path / "report", analysis, images=pictures())
    table = rows(folder / "mean_by_class.csv")
    assert list(table[0]) == ["layer", "class", "expert", "mean", "std", "count"]
    assert len(table) == 2 * 3 * 2
    first = {key: table[0][key] for key in ("layer", "class", "expert", "count")}
    assert first == {"layer": "block.dw", "class": "cat", "expert": "0", "count": "2"}
    assert float(table[0]["mean"]) == pytest.approx(0.3)
    assert float(table[0]["std"]) == pytest.approx(0.1, abs=1e-6)
    missing = [row for row in table if row["class"] == "dog"]
    assert {(row["mean"], row["std"], row["count"]) for row in missing} == {("", "", "0")}
    attention = [float(row["mean_share"]) for row in rows(folder / "attention.csv")]
    assert attention == pytest.approx([(0.8 + 0.6 + 0.9) / 3, (0.2 + 0.4 + 0.1) / 3])
    assert [row["class"] for row in rows(folder / "top_classes.csv")][:2] == ["ship", "cat"]
    assert sum(float(row["share"]) for row in rows(folder / "histogram.csv")) == pytest.approx(1, abs=1e-5)
    assert rows(folder / "counterfactuals.csv")[1] == {"coefficients": "mean", "accuracy": "0.4", "images": "10"}
    depth = rows(folder / "depth.csv")[0]
    assert (depth["layer"], depth["shared_by"], depth["images"]) == ("block", "block.dw block.pw", "3")


def test_every_figure_is_a_file_and_has_a_table(report: Path) -> None:
    page = (report / "report.html").read_text()
    names = re.findall(r'<figure id="figure-(\w+)">', page)
    assert len(names) == len(set(names)) == 9
    for name in names:
        ElementTree.fromstring((report / f"{name}.svg").read_text())
    tables = set(re.findall(r"Numbers: <code>([\w.]+)</code>", page))
    assert len(tables) >= 6
    assert all((report / table).exists() for table in tables)


def test_a_folder_that_exists_is_never_overwritten(tmp_path: Path, no_figures: None) -> None:
    (tmp_path / "report").mkdir()  # empty, and still not taken
    names = [write_report(tmp_path / "report", random_analysis()).name for _ in range(2)]
    assert names == ["report-2", "report-3"]
    assert not any((tmp_path / "report").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "report-2", "report-3"]


def test_a_folder_that_cannot_be_made_is_an_error_that_says_so(tmp_path: Path, no_figures: None) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"--out .*file/report: the results cannot be written \(.+\); pass"):
        write_report(tmp_path / "file" / "report", random_analysis())


def test_a_failure_leaves_nothing_behind(tmp_path: Path, no_figures: None) -> None:
    unknown = replace(random_analysis(), weight_similarity={})
    with pytest.raises(KeyError):
        write_report(tmp_path / "report", unknown)
    assert list(tmp_path.iterdir()) == []


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    analysis = replace(random_analysis(classes=HOSTILE), title=HOSTILE[0], data=HOSTILE[1])
    folder = write_report(tmp_path / "report", analysis, images=pictures(suffix=HOSTILE[0].replace("/", "")))
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Elements(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    explorer = json.loads(page.data)
    assert explorer["classes"] == list(HOSTILE)
    assert HOSTILE[0].replace("/", "") in explorer["samples"][0]["name"]
    for svg in folder.glob("*.svg"):
        assert {element.tag.split("}")[1] for element in ElementTree.fromstring(svg.read_text()).iter()} <= {
            "svg", "g", "path", "defs", "style", "rect", "text", "use", "clipPath", "image", "tspan", "pattern",
        }  # fmt: skip


def test_names_that_are_no_text_leave_a_page_that_is(tmp_path: Path, no_figures: None) -> None:
    analysis = replace(random_analysis(), title="\u202etxt", data="\udc80")
    images = pictures(suffix="\udc80\u2028\u202e")
    page = Elements((write_report(tmp_path / "report", analysis, images=images) / "report.html").read_text("utf-8"))
    assert json.loads(page.data)["samples"][0]["name"] == "x/0?\u2028⟨U+202E⟩.png"
    assert "on ?" in page.text
    assert "Routing of ⟨U+202E⟩txt" in page.text


def test_the_page_loads_nothing_and_runs_one_script(report: Path) -> None:
    page = Elements((report / "report.html").read_text())
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, name, value)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_ids_are_unique_in_the_page(report: Path) -> None:
    page = Elements((report / "report.html").read_text())
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_problems_are_named_and_counted(tmp_path: Path, no_figures: None) -> None:
    analysis = random_analysis(classes=("cat", "dog", "ship", "unseen"))
    labels_without_last = torch.arange(30) % 3
    analysis = synthetic_analysis({"a": torch.rand(30, 2)}, labels_without_last, analysis.classes)
    problems = analysis.collection.problems
    problems.undecodable, problems.undecodable_images = 2, [5, 9]
    problems.nonfinite["a"], problems.nonfinite_images = 1, [7]
    problems.never_ran = ["b.conv"]
    analysis = replace(analysis, skipped=("shard.tar, sample 3: no label",))
    text = (write_report(tmp_path / "r", analysis, images=pictures()) / "report.html").read_text()
    for expected in (
        "2 images could not be decoded and were left out: /home/me/x/5.png, /home/me/x/9.png.",
        "1 of 4 classes have no image here, so no mean: unseen.",
        "a: coefficients that are not finite in 1 images, left out of its numbers (/home/me/x/7.png)",
        "1 conditional layers never ran: b.conv.",
        "1 samples were left out when the data was opened: shard.tar, sample 3: no label.",
    ):
        assert expected in text


def test_one_image(tmp_path: Path) -> None:
    analysis = synthetic_analysis({"a": torch.rand(1, 4)}, torch.tensor([1]))
    text = (write_report(tmp_path / "r", analysis, images=pictures()) / "report.html").read_text()
    assert "Only one image" in text
    assert "2 of 3 classes have no image here" in text


@pytest.mark.parametrize("broken", [["late"], ["early", "late"]])
def test_layers_without_one_finite_coefficient(tmp_path: Path, broken: list[str]) -> None:
    coefficients = {name: torch.rand(12, 3) for name in ("early", "late")}
    for name in broken:
        coefficients[name][:, 1] = torch.nan
    analysis = synthetic_analysis(coefficients, torch.arange(12) % 3)
    folder = write_report(tmp_path / "r", analysis, images=pictures())
    depth = {row["layer"]: row for row in rows(folder / "depth.csv")}
    assert (depth["late"]["images"], depth["late"]["entropy"], depth["late"]["nonfinite"]) == ("0", "", "12")
    assert "figure-histogram" in (folder / "report.html").read_text()


def test_an_image_that_can_no_longer_be_read_is_left_out(tmp_path: Path) -> None:
    def load(place: int) -> torch.Tensor:
        raise DataError("gone")

    images = replace(pictures(), load=load)
    page = Elements((write_report(tmp_path / "r", random_analysis(), images=images) / "report.html").read_text())
    assert json.loads(page.data)["images"] == {}


def test_chosen_layers_and_classes(tmp_path: Path) -> None:
    analysis = random_analysis()
    folder = write_report(tmp_path / "r", analysis, layers=["early.pw"], classes=["dog", "cat"])
    svg = (folder / "class_profiles.svg").read_text()
    assert svg.index(">dog (") < svg.index(">cat (")
    assert ">early<" in svg
    assert ">late<" not in (folder / "mean_by_class.svg").read_text()
    with pytest.raises(UnknownNameError, match=r"--layers: unknown layer 'erly'; did you mean 'early'"):
        write_report(tmp_path / "r", analysis, layers=["erly"])
    with pytest.raises(UnknownNameError, match=r"--classes: unknown class 'shop'; did you mean 'ship'"):
        write_report(tmp_path / "r", analysis, classes=["shop"])


def test_recorded_runs(tmp_path: Path) -> None:
    def network(name: str, temperatures: list[float]) -> RecordedNetwork:
        measured = {"train_loss": 1.0, "val_loss": 2.0, "train_accuracy": 0.5, "val_accuracy": 0.4}
        rows = [{"epoch": e, "temperature": t, **measured} for e, t in enumerate(temperatures, start=1)]
        return RecordedNetwork(name, "conditional", 1_500_000, rows)

    nan = float("nan")
    runs = [
        network("hot", [30, 30]),
        network("cold", [1, 1]),
        network("annealed", [16, 1]),
        network("static", [nan, nan]),
    ]
    assert [run.label.split("conditional")[1] for run in runs] == [", T = 30", ", T = 1", ", T annealed to 1", ""]
    folder = write_report(tmp_path / "r", random_analysis(), runs=runs)
    table = rows(folder / "runs.csv")
    assert len(table) == 8
    assert table[0]["macs"] == "1500000"
    assert (table[-1]["run"], table[-1]["temperature"]) == ("static", "")
    assert "T annealed to 1" in (folder / "runs_curves.svg").read_text()


def big_analysis() -> Analysis:
    """1,000 classes and 30 routing decisions of 32 experts."""
    torch.manual_seed(0)
    classes = tuple(f"class number {i}, of some kind" for i in range(1000))
    coefficients = {f"stages.{i // 8}.blocks.{i % 8}": torch.rand(2000, 32) for i in range(30)}
    analysis = synthetic_analysis(coefficients, torch.arange(2000) % 1000, classes)
    sample = analysis.collection
    sample.sample_places = list(range(160))
    sample.sample_labels = list(range(160))
    sample.sample_coefficients = {name: alpha[:160] for name, alpha in coefficients.items()}
    return analysis


def test_the_explorer_of_a_large_network_is_small() -> None:
    """All that grows with classes, experts and layers; the figures are the same size for every network."""
    images = replace(pictures(), load=lambda place: torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8))
    explorer = explorer_data(big_analysis(), images)
    assert len(json.dumps(explorer)) < 20e6
    assert len(explorer["images"]) > 500


@pytest.fixture(scope="module")
def big_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = replace(pictures(), load=lambda place: torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8))
    return write_report(tmp_path_factory.mktemp("big") / "report", big_analysis(), images=images)


@pytest.mark.slow
def test_a_thousand_classes_and_thirty_layers_of_32_experts_stay_below_30_mb(big_report: Path) -> None:
    page = (big_report / "report.html").read_text()
    assert len(page.encode()) < 30e6
    explorer = json.loads(Elements(page).data)
    assert len(explorer["classes"]) == 1000
    assert sum(layer["experts"] for layer in explorer["layers"]) == 960


@pytest.mark.slow
def test_that_report_opens_in_a_browser(big_report: Path) -> None:
    from tests.analysis.browser import chromium, console_errors

    with chromium() as driver:
        driver.get((big_report / "report.html").as_uri())
        assert driver.execute_script("return document.querySelectorAll('#thumbs button').length") == 160
        assert console_errors(driver) == []
