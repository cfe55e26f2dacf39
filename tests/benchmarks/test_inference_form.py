"""The table of docs/inference.md is the one that its CSV gives."""

from __future__ import annotations

import csv

from benchmarks import inference_form


def test_the_page_shows_the_committed_numbers() -> None:
    with inference_form.OUT.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    found = inference_form.TABLE.search(inference_form.PAGE.read_text(encoding="utf-8"))
    assert found is not None and found.group() == inference_form.table(lines)
    of_one_network = [line for line in lines if line["network"] == inference_form.LARGE]
    assert [(line["experts"], line["rest"]) for line in of_one_network] == [("", ""), *inference_form.FORMS]
