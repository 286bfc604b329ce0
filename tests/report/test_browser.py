"""The report in a real browser: all pictures are there, nothing is asked of the network, a phone shows all of it.

It needs Chromium and its driver (on Debian: apt-get install chromium chromium-driver).
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mergeline.report.figures import Picture, heat_map
from mergeline.report.html import report_html
from tests.report.findings import RUN, comparison, findings, lineage, plan

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs Chromium and chromedriver: apt-get install chromium chromium-driver"
)

# What the eye needs: the contrast of every text with the nearest background that is painted behind it.
CONTRASTS = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const channels = colour => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
};
const light = colour => {
  const [r, g, b] = [...channels(colour)].slice(0, 3).map(part => {
    part /= 255; return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (channels(colour)[3] === 255) return colour;
  }
  return 'white';
};
return [...document.querySelectorAll('body *')]
  .filter(element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  .filter(element => !element.closest('style, svg'))
  .map(element => {
    const pair = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
    return [(pair[0] + 0.05) / (pair[1] + 0.05), element.textContent.trim().slice(0, 40)];
  });
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'mergeline[test]'")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A full page with long names and pictures of others, and the least that there is to say."""
    folder = tmp_path_factory.mktemp("pages")
    landscape = b'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="300"><rect width="9" height="9"/></svg>'
    pictures = [Picture("Landscape", "Two valleys", landscape), Picture("Map", "Many cells", heat_map([[0.1] * 900]))]
    name = "an-unusually-long-name-without-any-place-to-break-" * 3
    inputs = [{"kind": "checkpoint", "name": name, "source": f"https://example.org/{name}", "sha256": "a" * 64}]
    full = findings(pictures=pictures, run=replace(RUN, facts={"commit": name}), lineage=lineage(inputs=inputs))
    least = findings(aligned=False, competed=False)
    texts = {
        "full": report_html(plan(), comparison(0.7, 0.9, ensemble=0.8, average=0.4), full),
        "least": report_html(plan(), comparison(0.7, None), least),
        "unmeasured": report_html(plan(), comparison().model_copy(update={"rows": []}), least),
    }
    paths = {kind: folder / f"{kind}.html" for kind in texts}
    for kind, text in texts.items():
        paths[kind].write_text(text, encoding="utf-8")
    return paths


def shown(browser, path: Path, *, width: int, scheme: str = "light"):
    """The page at a width in CSS pixels; the logs of what was before it are emptied."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(path.as_uri())


@pytest.mark.parametrize("kind", ["full", "least", "unmeasured"])
def test_everything_loads_and_nothing_is_asked_of_the_network(browser, pages, kind):
    shown(browser, pages[kind], width=1100)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {pages[kind].as_uri()}
    images = browser.execute_script("return [...document.images].map(image => [image.alt, image.naturalWidth])")
    assert all(alt and width > 0 for alt, width in images)
    assert len(images) == (4 if kind == "full" else 0)  # two maps of one group, two pictures of others
    drawn = browser.execute_script("return [...document.querySelectorAll('svg')].map(s => s.getBBox().width)")
    assert len(drawn) == {"full": 3, "least": 1, "unmeasured": 0}[kind] and all(width > 0 for width in drawn)


@pytest.mark.parametrize("width", [320, 380, 1100])
@pytest.mark.parametrize("kind", ["full", "least", "unmeasured"])
def test_the_page_is_never_wider_than_the_screen(browser, pages, kind, width):
    shown(browser, pages[kind], width=width)
    wide, screen = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert (wide <= width) and screen == width
    if kind == "full" and width == 380:  # the table is wider, and scrolls in its own box
        boxes = "return [...document.querySelectorAll('.scroll')].map(box => box.scrollWidth - box.clientWidth)"
        assert max(browser.execute_script(boxes)) > 50


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(browser, pages, scheme):
    shown(browser, pages["full"], width=1100, scheme=scheme)
    found = browser.execute_script(CONTRASTS)
    assert len(found) > 50
    assert [(ratio, text) for ratio, text in found if ratio < 4.5] == []
    page, ink = browser.execute_script(
        "const style = getComputedStyle(document.body);"
        "return [style.backgroundColor, getComputedStyle(document.querySelector('svg text, svg')).color]"
    )
    assert (page == "rgb(255, 255, 255)") == (scheme == "light")
    assert ink == ("rgb(27, 31, 36)" if scheme == "light" else "rgb(230, 232, 234)")


def test_printed_it_is_whole(browser, pages):
    shown(browser, pages["full"], width=700)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    cut = (
        "return [...document.querySelectorAll('.scroll')].filter(box => getComputedStyle(box).overflowX !== 'visible')"
    )
    assert browser.execute_script(cut) == []
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
