"""The HTML report in a real browser: it draws, sorts and filters, asks the network for nothing, and runs no name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.browser import start, wait
from support.verifications import HOSTILE, behaviour, exact, fidelity, verification

from converter.compare import Choice, Comparison, Quant
from converter.findings import CHECKS, Finding
from converter.reports import comparison
from converter.reports.html import page
from converter.reports.plots import Axis, Frame, size
from converter.text import human_bytes
from converter.verify.provenance import FileDigest, Provenance
from converter.verify.results import Verification


def seen(checked: Verification, *names: str) -> Verification:
    """With values of these tensors before and after."""
    edges, before = [-1.0, -0.5, 0.0, 0.5, 1.0], [10, 40, 40, 10]
    return replace(checked, distributions={name: (edges, before, [8, 42, 41, 9 + at]) for at, name in enumerate(names)})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    running = start(tmp_path_factory.mktemp("profile"))
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
        wait(lambda: browser.execute_script("return document.documentElement.hasAttribute('data-ready')"))

    yield opened
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    # The browser's own first tab is a document, too, and may still be loading.
    asked = {each["request"]["url"] for each in sent if each["documentURL"].startswith("file:")}
    assert asked and {address.partition(":")[0] for address in asked} <= {"file", "data", "blob"}


def drawn(browser: Any) -> set[str]:
    """Plots that show something: points, a line, a map."""
    return set(
        browser.execute_script(
            "return [...document.querySelectorAll('.plot[id]')].filter(plot => plot.querySelector("
            "'svg :is(circle, polyline, rect)')).map(plot => plot.id)"
        )
    )


def visible(browser: Any, selector: str) -> list[Any]:
    return [each for each in browser.find_elements("css selector", selector) if each.is_displayed()]


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
    assert drawn(browser) == {"layers", "map", "sizes", "positions"}
    assert browser.title == "FAILED: model-q4.gguf"
    assert [o.text for o in browser.find_elements("css selector", "#tensor option")] == [
        "blk.2.attn_q.weight", "blk.3.attn_q.weight"
    ]  # fmt: skip
    assert len(browser.find_elements("css selector", ".findings li")) == 2
    assert "perplexity" in browser.find_element("css selector", ".facts").text


def test_the_list_chooses_whose_values_are_shown(browser: Any, show: Open) -> None:
    show(page(seen(FULL, "blk.2.attn_q.weight", "blk.3.attn_q.weight")))

    def shown() -> list[tuple[str, str]]:
        found = visible(browser, "#values figure")
        return [
            (each.find_element("xpath", "..").get_attribute("data-of"), each.get_attribute("class")) for each in found
        ]

    assert shown() == [("0", "plot plain"), ("0", "plot")]
    click(browser, "#tensor option[value='1']")
    assert shown() == [("1", "plot plain"), ("1", "plot")]
    click(browser, "#logarithmic")
    assert shown() == [("1", "plot log"), ("1", "plot")]


def test_what_fails_is_red_named_and_leads_to_its_row(browser: Any, show: Open) -> None:
    """The colour of all else says its type; on the map only what is further off than expected is red."""
    bad = fidelity("blk.2.attn_q.weight", noise=0.05 * 256 * 512)
    tensors = tuple(bad if each.name == bad.name else each for each in FULL.tensors)
    show(page(replace(FULL, tensors=tensors)))
    for plot in ("layers", "sizes"):
        (dot,) = browser.find_elements("css selector", f"#{plot} circle.bad")
        assert dot.get_attribute("textContent").startswith("blk.2.attn_q.weight: Q4_K")
        assert browser.find_element("css selector", f"#{plot} text.bad").text == bad.name
    assert browser.find_elements("css selector", "#layers .line.bad"), "a line to what was expected"
    off = [each.get_attribute("textContent") for each in browser.find_elements("css selector", "#map rect.off")]
    assert [words.endswith("9.2 dB less than expected") for words in off if bad.name in words] == [True]
    click(browser, "#failed")
    browser.find_element("id", "filter").send_keys("norm")
    assert column(browser, 0) == []
    click(browser, ".findings a")
    row = browser.find_element("css selector", "tr:target")
    assert row.is_displayed() and row.find_element("css selector", "td").text == bad.name


def test_findings_come_first_and_say_what_was_checked(browser: Any, show: Open) -> None:
    show(page(verification(2)))
    first, cards = browser.find_element("css selector", "section"), browser.find_element("css selector", ".facts")
    assert first.text.startswith("Findings") and first.location["y"] < cards.location["y"]
    click(browser, "summary")
    made = [each.text.split()[0] for each in browser.find_elements("css selector", "details li")]
    left = ("probe", "behaviour", "threshold", "baseline", "attestation")
    assert made == [name for name in CHECKS if name not in left]
    assert f"Not made: {', '.join(left)}." in browser.find_element("css selector", "details").text


def test_a_telephone_shows_two_cards_a_row_and_nothing_beside_the_page(browser: Any, show: Open) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        show(page(seen(FULL, "blk.2.attn_q.weight")))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        tops = [each.location["y"] for each in browser.find_elements("css selector", ".facts > div")]
        assert tops[0] == tops[1] < tops[2] == tops[3]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_audit_finds_what_it_asks_for() -> None:
    files = (FileDigest("model/a.safetensors", 1234, "ab" * 32), FileDigest("hf://org/x", None, None))
    made = Provenance("convert verify model q.gguf", "2026-11-27T12:00:00Z", "9.9", files)
    content = page(replace(verification(1), thresholds=("Q4_K: min_sqnr 20",), provenance=made))
    for words in (
        "convert verify model q.gguf",
        "2026-11-27T12:00:00Z",
        "9.9",
        "ab" * 32,
        "1,234",
        "Q4_K: min_sqnr 20",
    ):
        assert words in content


def test_a_page_is_small() -> None:
    """Of a model of 8 B, with values and behaviour; of one of 3,000 tensors."""
    large = verification(96, behaviour=behaviour(kl_by_position=(0.01, 0.02) * 2000))
    assert len(large.tensors) == 289
    bins = ([at / 100 for at in range(201)], list(range(1, 201)), list(range(200)))
    names = [tensor.name for tensor in large.worst_first[:8]]
    assert len(page(replace(large, distributions=dict.fromkeys(names, bins)))) < 400_000
    assert len(page(verification(1000))) < 3_000_000


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
    assert len(browser.find_elements("css selector", "script")) == 1, "page.js"
    assert not browser.find_elements("css selector", "img, svg a, main a:not([href^='#r'])")
    assert evil in column(browser, 0)
    shown = browser.execute_script("return document.getElementById('map').textContent")
    assert "<" in shown, "labels of plots are text, too"


def test_a_script_that_gets_in_does_not_run(browser: Any, tmp_path: Path) -> None:
    """The second lock: even where a name were not escaped, the page's policy runs nothing that it does not know."""
    path = tmp_path / "report.html"
    content = page(FULL).replace("<footer>", "<script>document.title = 'ran'</script><footer>")
    path.write_text(content, "utf-8")
    browser.get(path.as_uri())
    wait(lambda: browser.execute_script("return document.documentElement.hasAttribute('data-ready')"))
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
    ink = "return getComputedStyle(document.querySelector('#layers text')).fill"
    light = browser.execute_script(ink)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    wait(lambda: browser.execute_script(ink) != light)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def quant(name: str, nbytes: int, noise: float, **changes: Any) -> Quant:
    values = {"max_abs": 0.1, "worst_tensor": "blk.0.x", "worst_sqnr_db": 20.0, "nonfinite": 0, "types": {}, **changes}
    return Quant(name, nbytes, 4.5, noise, 1.0, memory=2 * nbytes, **values)


QUANTS = (quant("Q8_0", 9_000_000, 0.0001), quant("Q4_1", 6_000_000, 0.01), quant("Q4_K_M", 5_000_000, 0.005))


def test_quants_side_by_side(browser: Any, show: Open) -> None:
    """What the terminal shows: memory, the worst tensor, what to take; and no column that nobody filled."""
    found = Comparison("<b>model</b>", QUANTS, 4096, seconds=1.0)
    made = Provenance("convert compare model", "2026-11-27T12:00:00Z", "9.9")
    show(comparison.page(Choice(found, fit=7_000_000, provenance=made)))
    assert drawn(browser) == {"quants"}
    assert browser.find_element("css selector", "h1").text == "Quants of <b>model</b>"
    advice = browser.find_element("css selector", ".advice").text
    assert advice.startswith("the least error within a file of 7.00 MB: Q4_K_M")
    heads = [each.text for each in browser.find_elements("css selector", "th")]
    assert {"to run", "worst tensor"} < set(heads) and not {"perplexity", "mean KL"} & set(heads)
    assert browser.find_element("css selector", "tr.best td").text == "Q4_K_M"
    assert len(browser.find_elements("css selector", "circle.beaten")) == 1
    assert "convert compare model" in browser.find_element("css selector", ".made").text
    ran = tuple(replace(each, behaviour=behaviour(mean_kl_error=0.0004)) for each in QUANTS)
    show(comparison.page(Choice(replace(found, quants=ran))))
    assert drawn(browser) == {"quants", "kl"} and "0.00400 ± 0.00040" in browser.page_source


# ------------------------------------------------------------------------------------------------ axes


def test_an_axis_of_sizes_has_three_ticks_a_decade_with_units() -> None:
    axis = Axis.around("size", [30_000, 2_400_000], True, show=size)
    assert [words for _, words in axis.ticks(600)] == ["50 kB", "100 kB", "200 kB", "500 kB", "1 MB", "2 MB"]
    wide = Axis.around("size", [100, 10**12], True, show=human_bytes)
    assert len(wide.ticks(300)) <= 300 / 40, "no more than can be read"


@pytest.mark.parametrize("values", [[], [0.0], [math.inf, 5.0], [1e-30, 1e30], [-3.0, -2.9], [7.0, 7.0]])
@pytest.mark.parametrize("log", [False, True])
def test_an_axis_holds_any_values(values: list[float], log: bool) -> None:
    axis = Axis.around("x", values, log)
    frame = Frame(axis, axis)
    assert axis.low < axis.high and all(math.isfinite(at) for at, _ in axis.ticks(300))
    for value in values:
        if math.isfinite(value) and (value > 0 or not log):
            assert 0 <= axis.share(value) <= 1 and all(map(math.isfinite, frame.at(value, value)))
