"""The HTML report in a real browser: it draws, sorts and filters, asks the network for nothing, and runs no name."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.verifications import HOSTILE, behaviour, exact, fidelity, verification

from converter.findings import Finding
from converter.verify.results import Verification

pytest.importorskip("plotly", reason="plotly draws the plots")
from converter.reports.html import Candidate, comparison, page

FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1400,1000",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


def seen(checked: Verification, *names: str) -> Verification:
    """With values of these tensors before and after."""
    edges, before = [-1.0, -0.5, 0.0, 0.5, 1.0], [10, 40, 40, 10]
    return replace(checked, distributions={name: (edges, before, [8, 42, 41, 9 + at]) for at, name in enumerate(names)})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    # A browser does not sandbox what root starts.
    for flag in (*FLAGS, f"--user-data-dir={profile}", *["--no-sandbox"] * (os.geteuid() == 0)):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()


Open = Callable[[str], None]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a page and waits until it has drawn; at the end of the test nothing may stand in the console, and nothing
    but the file may have been asked for."""

    def opened(content: str) -> None:
        path = tmp_path / "report.html"
        path.write_text(content, "utf-8")
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(path.as_uri())
        wait(lambda: browser.execute_script("return document.documentElement.hasAttribute('data-drawn')"))

    yield opened
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    # The browser's own first tab is a document, too, and may still be loading.
    asked = {each["request"]["url"] for each in sent if each["documentURL"].startswith("file:")}
    assert asked and {address.partition(":")[0] for address in asked} <= {"file", "data", "blob"}


def wait(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the page did not come to it"
        time.sleep(0.05)


def drawn(browser: Any) -> set[str]:
    """Plots that show something: points, a line, a map."""
    return set(
        browser.execute_script(
            "return [...document.querySelectorAll('.plot')].filter(plot => plot.querySelector("
            "'.points path, .lines path, .heatmaplayer image, .hm image')).map(plot => plot.id)"
        )
    )


def column(browser: Any, at: int) -> list[str]:
    return list(
        browser.execute_script(
            "return [...document.querySelectorAll('#tensors tbody tr')].filter(row => !row.hidden)"
            f".map(row => row.cells[{at}].textContent)"
        )
    )


def click(browser: Any, selector: str) -> None:
    element = browser.find_element("css selector", selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


FULL = verification(
    12,
    fidelity("inf", energy=0.0, cosine=math.nan, bound=None),
    behaviour=behaviour(),
    findings=(Finding("values", "blk.2.attn_q.weight", "is bad", hint="look"), Finding("extra", "x", "is new", False)),
)


def test_every_plot_is_drawn(browser: Any, show: Open) -> None:
    show(page(seen(FULL, "blk.2.attn_q.weight", "blk.3.attn_q.weight", "not a tensor of this model")))
    assert drawn(browser) == {"layers", "map", "sizes", "values", "errors", "positions"}
    assert browser.title == "FAILED: model-q4.gguf"
    assert [o.text for o in browser.find_elements("css selector", "#tensor option")] == [
        "blk.2.attn_q.weight", "blk.3.attn_q.weight"
    ]  # fmt: skip
    assert len(browser.find_elements("css selector", ".findings li")) == 2
    assert "perplexity" in browser.find_element("css selector", ".facts").text


def test_the_list_chooses_whose_values_are_shown(browser: Any, show: Open) -> None:
    show(page(seen(FULL, "blk.2.attn_q.weight", "blk.3.attn_q.weight")))
    last = "return document.getElementById('values').data[1].y.at(-1)"
    assert browser.execute_script(last) == pytest.approx(0.09)
    click(browser, "#tensor option[value='1']")
    wait(lambda: browser.execute_script(last) > 0.095)
    click(browser, "#logarithmic")
    wait(lambda: browser.execute_script("return document.getElementById('values').layout.yaxis.type") == "log")


def test_columns_sort_by_a_click(browser: Any, show: Open) -> None:
    show(page(FULL))
    head = "#tensors th:nth-child({}) button"
    click(browser, head.format(1))
    names = column(browser, 0)
    assert names.index("blk.2.attn_q.weight") < names.index("blk.10.attn_q.weight"), "numbers in names are numbers"
    click(browser, head.format(4))
    rising = column(browser, 3)
    assert rising[0] == "-inf" and rising[-12:] == ["exact"] * 12
    assert [float(text) for text in rising[:-12]] == sorted(float(text) for text in rising[:-12])
    click(browser, head.format(4))
    assert column(browser, 3) == ["exact"] * 12 + sorted(rising[:-12], key=float, reverse=True)
    assert browser.find_element("css selector", "#tensors th:nth-child(4)").get_attribute("aria-sort") == "descending"


def test_filter(browser: Any, show: Open) -> None:
    show(page(FULL))
    box = browser.find_element("id", "filter")
    box.send_keys("ffn Q6_k")
    assert column(browser, 0) and all("ffn_down" in name for name in column(browser, 0))
    assert browser.find_element("id", "count").text == "12 of 38 tensors"
    box.clear()
    click(browser, "#failed")
    assert column(browser, 0) == ["blk.2.attn_q.weight"]


def test_hostile_names_are_text(browser: Any, show: Open) -> None:
    evil = "blk.1.<img src=x onerror=\"document.title='ran'\"><a href='javascript:alert(1)'>y</a>"
    tensors = (fidelity(HOSTILE), fidelity(evil), fidelity("blk.2.x", type="<b>Q9</b>"), exact("blk.0.norm"))
    findings = tuple(Finding("values", name, name, hint=name) for name in (HOSTILE, evil))
    checked = Verification(HOSTILE, evil, tensors, findings, behaviour(reference_runtime=HOSTILE), 0.1)
    show(page(seen(checked, HOSTILE, evil)))
    assert browser.title.startswith("FAILED: blk.1.<img")
    assert len(browser.find_elements("css selector", "script")) == 3, "the data, plotly, page.js"
    assert not browser.find_elements("css selector", "img[src='x'], .plot a[href], svg a, main a")
    assert evil in column(browser, 0)
    shown = browser.execute_script("return document.getElementById('map').textContent")
    assert "<" in shown, "labels of plots are text, too"


def test_a_script_that_gets_in_does_not_run(browser: Any, tmp_path: Path) -> None:
    """The second lock: even where a name were not escaped, the page's policy runs nothing that it does not know."""
    path = tmp_path / "report.html"
    content = page(FULL).replace("<footer>", "<script>document.title = 'ran'</script><footer>")
    path.write_text(content, "utf-8")
    browser.get(path.as_uri())
    wait(lambda: browser.execute_script("return document.documentElement.hasAttribute('data-drawn')"))
    assert browser.title == "FAILED: model-q4.gguf"
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))
    browser.get_log("performance")


@pytest.mark.parametrize(
    "checked",
    [Verification("a", "b", (), ()), Verification("a", "b", (exact("norm"),), ()), verification(1)],
    ids=["nothing", "exact", "one block"],
)
def test_small_models(browser: Any, show: Open, checked: Verification) -> None:
    show(page(checked))
    assert browser.find_element("css selector", ".verdict").text == "PASSED"


def test_many_positions_and_findings_stay_small() -> None:
    many = tuple(Finding("values", f"t{at}", "bad") for at in range(5000))
    large = page(verification(2, behaviour=behaviour(kl_by_position=(0.01,) * 200_000), findings=many))
    assert len(large) < len(page(verification(2))) + 400_000


def test_the_colours_follow_the_reader(browser: Any, show: Open) -> None:
    show(page(FULL))
    ink = "return document.getElementById('layers').layout.font.color"
    light = browser.execute_script(ink)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    wait(lambda: browser.execute_script(ink) != light)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_quants_side_by_side(browser: Any, show: Open) -> None:
    quants = [Candidate("q4_k_m", 5_000_000, 4.9, 22.9, 9.95, 0.01), Candidate("q8_0", 9_000_000, 8.5, 45.0, 9.8, 0.0)]
    show(comparison("<b>model</b>", quants))
    assert drawn(browser) == {"quants", "perplexity"}
    assert browser.find_element("css selector", "h1").text == "Quants of <b>model</b>"


def test_plots_are_what_plotly_knows() -> None:
    """plotly's own schema accepts every trace and layout."""
    go = pytest.importorskip("plotly.graph_objects")
    content = page(seen(FULL, "blk.2.attn_q.weight"))
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', content)
    assert found is not None
    for plot in json.loads(found[1]).values():
        for traces in plot["traces"] if "chooser" in plot else [plot["traces"]]:
            go.Figure(traces, plot["layout"])
