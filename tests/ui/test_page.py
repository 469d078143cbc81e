"""The page of `convert ui` in a real browser: by mouse and keyboard, wide and narrow, light and dark, with names that
mean harm; it asks nobody but its own server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import models, sparse
from support.browser import start, wait
from support.verifications import HOSTILE

import converter
from converter.ui.roots import Roots
from converter.ui.routes import State
from converter.ui.server import Server, serving

KJV = models.FIXTURES / "kjv-llama"
EVIL = "blk.0.<img src=x onerror=\"document.title='ran'\"><a href='javascript:alert(1)'>y</a>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    running = start(tmp_path_factory.mktemp("profile"))
    yield running
    running.quit()


class Page:
    """A server on a path, and its page in the browser."""

    def __init__(self, browser: Any, server: Server) -> None:
        self.browser, self.server = browser, server

    def js(self, code: str, *given: Any) -> Any:
        return self.browser.execute_script(code, *given)

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def count(self, selector: str) -> int:
        return len(self.browser.find_elements("css selector", selector))

    def click(self, selector: str) -> None:
        element = self.browser.find_element("css selector", selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def tab(self, name: str) -> None:
        self.click(f"#tab-{name}")

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def choose(self, select: str, value: str) -> None:
        """By the list, as a person does."""
        from selenium.webdriver.support.ui import Select

        Select(self.browser.find_element("css selector", select)).select_by_visible_text(value)

    def type(self, selector: str, text: str) -> None:
        self.click(selector)
        self.keys(text)

    def overflow(self) -> int:
        return int(self.js("return document.documentElement.scrollWidth - innerWidth"))


Open = Callable[..., Page]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page on a path; at the end nothing may stand in the console, and nobody else may have been asked."""
    held: list[Any] = []
    own: list[str] = []

    def opened(path: Path, width: int = 1280, dark: bool = False) -> Page:
        (tmp_path / "out").mkdir(exist_ok=True)
        context = serving(State(Roots.of(path, tmp_path / "out")))
        server = context.__enter__()
        held.append(context)
        own.append(server.address)
        browser.get_log("browser"), browser.get_log("performance")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.get(server.address)
        page = Page(browser, server)
        wait(lambda: page.js("return document.documentElement.hasAttribute('data-ready')"))
        return page

    yield opened
    logged = browser.get_log("browser")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    browser.get("about:blank")
    for context in held:
        context.__exit__(None, None, None)
    assert [entry for entry in logged if " 422 " not in entry["message"]] == [], "an error that is shown is no trouble"
    sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    asked = {each["request"]["url"] for each in sent if each["documentURL"].startswith("http")}
    assert asked and all(url.startswith(tuple(own)) for url in asked)


def test_a_model_as_a_tree(show: Open) -> None:
    page = show(KJV)
    names = page.js("return [...document.querySelectorAll('#tree .node .name')].map((each) => each.textContent)")
    assert {"lm_head", "model", "layers.*6 \u00d7", "mlp6 \u00d7"} <= set(names)
    assert "5.77 M" in page.text("#facts") and "QLoRA, rank 16" in page.text("#overview")
    page.js("[...document.querySelectorAll('.node')].find((each) => each.textContent.includes('mlp')).click()")
    page.js("[...document.querySelectorAll('.node')].find((each) => each.textContent.includes('down_proj')).click()")
    wait(lambda: "model.layers.0.mlp.down_proj.weight" in page.text("#tensor"))
    assert page.count("#tensor .layers button") == 6 and page.count("#tensor rect.hist") == 48
    page.click("#tensor .layers button:nth-child(4)")
    wait(lambda: "model.layers.3.mlp.down_proj.weight" in page.text("#tensor h2"))
    assert "256 \u00d7 768" in page.text("#tensor .facts") and "safetensors@" in page.text("#tensor")


def test_the_filter(show: Open) -> None:
    page = show(KJV)
    page.type("#filter", "Q_PROJ bf16")
    assert page.text("#count") == "6 of 57 tensors" and page.count("#tree .found .node") == 6
    page.click("#tree .found .node:nth-of-type(1)")
    wait(lambda: "q_proj" in page.text("#tensor h2"))
    page.js("const box = document.getElementById('filter'); box.value = ''; box.dispatchEvent(new Event('input'))")
    assert page.text("#count") == "57 tensors" and not page.count(".found")


def test_the_plan_redraws(show: Open) -> None:
    page = show(KJV)
    page.tab("plan")
    assert page.count("#grid .cell:not(.none)") == 57 and "4.87" in page.text("#costs")
    assert "Q4_K" in page.text("#planned") and "Q8_0" not in page.text("#planned")
    page.choose("#quant", "Q8_0")
    wait(lambda: "Q8_0" in page.text("#planned"))
    assert page.js("return document.getElementById('target').value") == "kjv-llama-Q8_0.gguf"
    page.type("#pattern", "ffn_down")
    page.keys("\ue007")
    wait(lambda: "Q6_K" in page.text("#planned"))
    assert page.text("#chips") == "ffn_down = Q6_K"
    assert "--tensor-type ffn_down=Q6_K" in page.text("#costs .command code")
    page.click("#chips button")
    wait(lambda: "Q6_K" not in page.text("#planned"))
    page.type("#pattern", "nothing_of_it")
    page.keys("\ue007")
    wait(lambda: "nothing_of_it" in page.text("#planned"))
    assert not page.text("#grid"), "what cannot be planned says why"


def test_a_cell_tells_its_rule_and_gets_another_type(show: Open) -> None:
    page = show(KJV)
    page.tab("plan")
    cell = "document.querySelector('#grid [aria-label=\"blk.2.attn_v.weight\"]')"
    page.js(f"{cell}.dispatchEvent(new PointerEvent('pointerover', {{bubbles: true}}))")
    assert "blk.2.attn_v.weight" in page.text("#cell") and "every third layer" in page.text("#cell")
    page.js(f"{cell}.click()")
    page.choose("#cell select", "F16")
    page.click("#cell button")
    wait(lambda: "F16" in page.text("#planned"))
    assert page.text("#chips") == r"^blk\.2\.attn_v\.weight$ = F16"


def test_by_keyboard(show: Open) -> None:
    page = show(KJV)
    focused = "return document.activeElement.id || document.activeElement.className"
    down, right, left, enter, tab = "\ue015", "\ue014", "\ue012", "\ue007", "\ue004"
    page.js("document.querySelector('#tree [tabindex=\"0\"]').focus()")
    page.keys(down)
    assert page.js("return document.activeElement.textContent").startswith("model")
    page.keys(left)
    assert page.js("return document.activeElement.getAttribute('aria-expanded')") == "false"
    page.keys(right, right)
    assert page.js("return document.activeElement.textContent").startswith("embed_tokens")
    page.keys(enter)
    wait(lambda: "embed_tokens" in page.text("#tensor h2"))
    page.js("document.getElementById('tab-model').focus()")
    page.keys(right)
    assert page.js(focused) == "tab-plan" and not page.js("return document.getElementById('plan').hidden")
    page.js("document.querySelector('.grid').focus()")
    page.keys(down, right, right, enter)
    assert "blk.2.attn_norm.weight" in page.text("#cell") and page.count("#cell select") == 1
    reached = set()
    page.js("document.getElementById('choose').focus()")
    for _ in range(40):
        reached.add(page.js(focused))
        page.keys(tab)
    assert {"choose", "filter", "tab-plan", "quant", "pattern"} <= reached
    assert page.js(
        "return [...document.querySelectorAll('button, input, select')].filter((each) => each.checkVisibility() "
        "&& !(each.textContent.trim() || each.getAttribute('aria-label') || each.labels?.length)).length"
    ) == 0, "everything has a name"  # fmt: skip


def test_sizes_conversion_proof_and_difference(show: Open, tmp_path: Path) -> None:
    page = show(KJV)
    page.tab("compare")
    page.js("document.getElementById('quants').value = 'q8_0,q4_k_m,q4_1'")
    page.type("#limit", "9MB")
    page.click("#measure .main-action")
    wait(lambda: page.count("#curve .point") == 3)
    assert "Q4_K_M is the closest that runs in 9MB." in page.text("#curve") and page.count("#curve .ring") == 1
    assert page.count("#curve .beaten") == 1, "Q4_1 is larger than Q4_K_M and further"
    page.click("#curve tbody tr:nth-child(3) button")
    wait(lambda: not page.js("return document.getElementById('plan').hidden"))
    page.tab("convert")
    page.click("#run .main-action")
    wait(lambda: "Written" in page.text("#made"))
    (made,) = (tmp_path / "out").iterdir()
    assert made.name == "kjv-llama-Q4_K_M.gguf" and str(made.resolve()) in page.text("#made")
    page.click("#made button")
    wait(lambda: page.text("#proof .verdict") == "PASSED")
    assert page.count("#proof tbody tr") == 57 and "convert verify" in page.text("#proof .command")
    page.tab("diff")
    page.type("#other", str(made))
    page.click("#differ .main-action")
    wait(lambda: page.count("#differences .cell"))
    assert "44 tensors of 57" in page.text("#differences") and page.count("#differences .tree .node") > 5
    page.tab("convert")
    page.click("#run .main-action")
    wait(lambda: "exists" in page.text("#trouble") or "force" in page.text("#trouble"))


def test_a_page_that_is_opened_again_shows_what_came_of_a_job(show: Open) -> None:
    page = show(KJV)
    page.tab("convert")
    page.click("#run .main-action")
    wait(lambda: "Written" in page.text("#made"))
    page.browser.get(page.server.address)
    wait(lambda: "Written" in page.text("#made"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out(show: Open, width: int, dark: bool) -> None:
    page = show(KJV, width, dark)
    colours = page.js("const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]")
    light = [sum(map(int, colour.strip("rgb()").split(","))) for colour in colours]
    assert (light[0] < light[1]) == dark
    for name in ("model", "plan", "compare", "convert", "verify", "diff"):
        page.tab(name)
        assert page.overflow() <= 0, name
    assert page.js("return document.getElementById('side').open") == (width > 860)


def test_choosing_a_model(show: Open, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    converter.convert(KJV, tmp_path / "models/kjv.gguf", converter.Request(quant="q8_0"))
    page = show(tmp_path / "models")
    assert page.js("return document.getElementById('files').open") and "kjv.gguf" in page.text("#entries")
    page.click("#entries button")
    wait(lambda: "Q8_0" in page.text("#overview") and "8.51 bits" in page.text("#facts"))
    wait(lambda: "quantized" in page.text("#planned"))  # that codes are encoded again has to be said
    page.tab("plan")
    page.click("#allow_requantize")
    wait(lambda: page.count("#grid .cell") > 50)


def test_names_that_mean_harm_are_text(show: Open, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    names = [EVIL, HOSTILE.partition("\x1b")[0], "__proto__", "constructor.prototype"]
    for at, file in enumerate(("<b>a.safetensors", "b.safetensors")):
        sparse.sparse(tmp_path / "models" / file, {name: (4 + at,) for name in names})
    page = show(tmp_path / "models/<b>a.safetensors")
    assert page.browser.title.startswith("<b>a.safetensors")
    assert EVIL.split(".")[-1] in page.text("#tree")
    page.type("#filter", "onerror")
    page.click("#tree .found .node")
    wait(lambda: EVIL in page.text("#tensor"))
    assert page.text("#planned"), "no config: an error with the path in it"
    page.tab("diff")
    page.js("document.getElementById('other').value = 'b.safetensors'")
    page.click("#differ .main-action")
    wait(lambda: "4 tensors of 4" in page.text("#differences"))
    assert EVIL in page.text("#differences")
    page.click("#choose")
    wait(lambda: "<b>a.safetensors" in page.text("#entries"))
    assert page.count("script") == 1 and not page.count("img, a, iframe, #entries b, style")
    assert page.browser.title.startswith("<b>a.safetensors"), "nothing ran"


def test_the_policy_stops_what_gets_in(show: Open) -> None:
    """The second lock: no script of others, no HTML of text, no address of others."""
    page = show(KJV)
    assert (
        page.js("try { document.body.innerHTML = '<i>x</i>'; return 'made' } catch { return 'refused' }") == "refused"
    )
    script = "try { document.createElement('script').text = 'x'; return 'made' } catch { return 'refused' }"
    assert page.js(script) == "refused"
    asked = "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('asked'), () => done('refused'))"
    assert page.browser.execute_async_script(asked) == "refused"
    told = page.browser.get_log("browser")
    assert told and all("Content Security Policy" in each["message"] or "Trusted" in each["message"] for each in told)
    page.browser.get_log("performance")
    page.browser.get(page.server.address)


def test_three_thousand_tensors(show: Open, tmp_path: Path) -> None:
    """Layers are folded, and a list of all is never made: few elements, and keys and filter answer at once."""
    names = {f"blk.{layer}.part_{part}.weight": (32, 32) for layer in range(150) for part in range(20)}
    sparse.sparse(tmp_path / "many.safetensors", names)
    page = show(tmp_path / "many.safetensors")
    assert "3,000 tensors" in page.text("#count") and page.js("return document.querySelectorAll('*').length") < 2000
    page.type("#filter", "blk.14 part_7")
    wait(lambda: page.text("#count") == "11 of 3,000 tensors")
    started = time.monotonic()
    page.js(
        "const box = document.getElementById('filter'); box.value = 'weight'; box.dispatchEvent(new Event('input'))"
    )
    assert time.monotonic() - started < 10 and page.count("#tree .found .node") == 300
