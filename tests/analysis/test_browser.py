"""The report in a real browser: no errors, every control works, phone and dark too, hostile names stay text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from condconv.analysis import write_report
from tests.analysis.browser import chromium, console_errors
from tests.analysis.networks import pictures, synthetic_analysis
from tests.analysis.test_report import HOSTILE

CLASSES = ("cat", "dog", *HOSTILE)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    early, late = torch.rand(40, 6), torch.rand(40, 3)
    early[0, 2] = torch.nan
    analysis = synthetic_analysis({"early": early, "late": late}, torch.arange(40) % 4, CLASSES)  # no image of the last
    images = pictures(suffix=HOSTILE[1])
    out = tmp_path_factory.mktemp("browser") / "report"
    return (write_report(out, replace(analysis, title=HOSTILE[0]), images=images) / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    browser.get(address)
    return browser


def element(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def shown(page: Any, selector: str) -> list[Any]:
    return [found for found in page.find_elements("css selector", selector) if found.is_displayed()]


def choose(page: Any, selector: str, value: str) -> None:
    script = (
        "const e = document.querySelector(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('change'))"
    )
    page.execute_script(script, selector, value)


def keys(page: Any, text: str) -> None:
    page.switch_to.active_element.send_keys(text)


def test_loads_without_errors_and_without_running_names(page: Any) -> None:
    assert console_errors(page) == []
    assert page.title == f"Routing of {HOSTILE[0]}"
    assert page.execute_script("return document.querySelectorAll('script').length") == 2
    loaded = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    assert page.execute_script(loaded) == []


def test_tabs_by_mouse_and_by_arrow_keys(page: Any) -> None:
    for name in ("experts", "classes", "images"):
        element(page, f"#tab-{name}").click()
        assert [view.get_attribute("id") for view in shown(page, "[role=tabpanel]")] == [f"view-{name}"]
    keys(page, "\ue014")  # right
    assert element(page, "#view-experts").is_displayed()
    keys(page, "\ue012")  # left
    assert element(page, "#view-images").is_displayed()


def test_image_shows_its_coefficients_and_leads_to_an_expert(page: Any) -> None:
    rows = element(page, "#image-detail table").find_elements("css selector", "tr")
    assert [len(row.find_elements("css selector", "td")) for row in rows] == [6, 3]
    cells = [cell.get_attribute("title") for cell in page.find_elements("css selector", "#image-detail td")]
    assert cells[2] == "early, expert 2: –"
    page.find_elements("css selector", "#thumbs button")[1].click()
    assert element(page, "#image-detail h3").text == "dog"
    page.find_elements("css selector", "#image-detail tr:nth-child(2) td")[1].click()
    assert element(page, "#view-experts").is_displayed()
    assert element(page, "#expert-layer").get_property("selectedIndex") == 1
    assert element(page, "#expert-number").get_property("value") == "1"


def test_search_filters_and_arrow_keys_walk_what_is_left(page: Any) -> None:
    keys(page, "/")
    assert page.switch_to.active_element.get_attribute("id") == "search"
    keys(page, "dog")
    assert element(page, "#found").text == "5 of 20 images"
    assert len(shown(page, "#thumbs button")) == 5
    shown(page, "#thumbs button")[0].click()
    keys(page, "\ue014")
    assert shown(page, "#thumbs button")[1].get_attribute("aria-selected") == "true"
    assert element(page, "#image-detail h3").text == "dog"
    element(page, "#search").send_keys(" nowhere")
    assert element(page, "#found").text == "0 of 20 images"


def test_experts_by_menu_buttons_and_keys(page: Any) -> None:
    keys(page, "2")
    choose(page, "#expert-layer", "0")
    assert len(element(page, "#expert-number").find_elements("css selector", "option")) == 6
    choose(page, "#expert-number", "5")
    assert len(shown(page, "#expert-detail .bars li")) == 4  # the class without images has no mean
    assert len(shown(page, "#expert-detail .gallery img")) == 8
    element(page, "#expert-next").click()
    assert element(page, "#expert-number").get_property("value") == "0"
    element(page, "#expert-previous").click()
    keys(page, "\ue012")
    assert element(page, "#expert-number").get_property("value") == "4"
    choose(page, "#expert-layer", "1")
    assert element(page, "#expert-number").get_property("value") == "2"  # the last of three


def test_class_against_class(page: Any) -> None:
    keys(page, "3")
    assert len(shown(page, "#class-detail .pair li")) == 3
    before = element(page, "#class-detail .pair").text
    element(page, "#class-swap").click()
    assert element(page, "#class-a").get_property("value") == "dog"
    assert element(page, "#class-detail .pair").text != before
    choose(page, "#class-layer", "0")
    assert len(shown(page, "#class-detail .pair li")) == 6
    choose(page, "#class-a", "no such class")
    assert "Choose two classes" in element(page, "#class-detail").text
    choose(page, "#class-a", HOSTILE[1])
    assert HOSTILE[1] in element(page, "#class-detail").text
    assert page.execute_script("return document.querySelectorAll('#class-detail img').length") == 0
    assert console_errors(page) == []


def test_keys_do_nothing_while_typing(page: Any) -> None:
    element(page, "#search").send_keys("2/")
    assert element(page, "#view-images").is_displayed()
    assert element(page, "#search").get_property("value") == "2/"


@pytest.mark.parametrize("width", [390, 768, 1200])
def test_no_sideways_scrolling_at_any_width(address: str, width: int) -> None:
    with chromium(width, 844) as driver:
        driver.get(address)
        for view in "123":
            element(driver, "body").send_keys(view)
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert console_errors(driver) == []


def test_dark_pages_have_light_ink_in_figures_too(address: str) -> None:
    def brightness(driver: Any, script: str) -> float:
        red, green, blue = driver.execute_script(f"return getComputedStyle({script}).color.match(/\\d+/g).map(Number)")[
            :3
        ]
        return (red + green + blue) / 3

    for dark in (False, True):
        with chromium(dark=dark) as driver:
            driver.get(address)
            for script in ("document.body", "document.querySelector('figure svg')"):
                assert (brightness(driver, script) > 128) == dark
