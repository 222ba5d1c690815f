"""report.html in Chromium: nothing is cut off, no console message, light and dark mode."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report.comparisons import ARABIC, DECOMPOSED, MARKUP, synthetic_comparison

from pipeline.evaluation.result import Comparison
from pipeline.report.html import report_html

PHONE, DESKTOP = (390, 844), (1400, 900)

CONTRASTS = """
function channels(text) { return text.match(/[\\d.]+/g).map(Number); }
function over(top, bottom) {  // both [r, g, b, a]; the bottom one is opaque
  const alpha = top.length > 3 ? top[3] : 1;
  return [0, 1, 2].map(i => top[i] * alpha + bottom[i] * (1 - alpha));
}
function luminance(colour) {
  const [r, g, b] = colour.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function background(element) {
  if (!element) return [255, 255, 255];
  return over(channels(getComputedStyle(element).backgroundColor),
              background(element.parentElement));
}
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || element.tagName === 'title') continue;
  const style = getComputedStyle(element);
  const ground = background(element.closest('svg') ?? element);
  const ink = over(channels(element.closest('svg') ? style.fill : style.color), ground);
  const [low, high] = [luminance(ink), luminance(ground)].sort((a, b) => a - b);
  found.push([(high + 0.05) / (low + 0.05), walker.currentNode.data.trim()]);
}
return found;
"""

CUT_OFF = """
return [...document.querySelectorAll('body *')].filter(element => {
  if (element.closest('.scroll, .skip')) return false;
  const box = element.getBoundingClientRect();
  return box.width && (box.left < -1 || box.right > innerWidth + 1);
}).map(element => element.outerHTML.slice(0, 200));
"""


OVERFLOWING = """
return [...document.querySelectorAll('th, td, .gallery dd')].filter(
  cell => cell.scrollWidth > cell.clientWidth + 1
).map(cell => cell.textContent);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver on PATH")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: '.[dev]'")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def write_report(comparison: Comparison, path: Path, *, command: str | None) -> None:
    path.write_text(report_html(comparison, command=command), "utf-8")


def show(browser: Any, path: Path, size: tuple[int, int], scheme: str = "light") -> None:
    width, height = size
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(path.as_uri())


@pytest.fixture(scope="module", params=["usual", "hostile", "long", "many classes"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes, name = {
        "usual": (("cats", "dogs"), "picture"),
        "hostile": ((MARKUP, DECOMPOSED, ARABIC), f"{MARKUP.replace('/', '')} {ARABIC}"),
        "long": (("w" * 200, "two words " * 20), "f" * 180),
        "many classes": ([f"class {number:03d}" for number in range(100)], "picture"),
    }[request.param]
    folder = tmp_path_factory.mktemp("report")
    comparison = synthetic_comparison(folder / "set", classes=classes, file_name=name)
    write_report(comparison, folder / "report.html", command="python -m pipeline.classify " * 9)
    return folder / "report.html"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_report_is_complete_and_legible(
    browser: Any, report: Path, size: tuple[int, int], scheme: str
) -> None:
    show(browser, report, size, scheme)
    assert browser.get_log("browser") == []
    wide, inner = browser.execute_script(
        "return [document.scrollingElement.scrollWidth, innerWidth]"
    )
    assert wide <= inner == size[0]
    assert browser.execute_script(CUT_OFF) == []
    bottom = browser.execute_script(
        "return document.querySelector('.recommendation').getBoundingClientRect().bottom"
    )
    assert 0 < bottom <= size[1]
    assert browser.execute_script(OVERFLOWING) == []
    dim = [each for each in browser.execute_script(CONTRASTS) if each[0] < 4.5]
    assert dim == []
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(21, 23, 26)") == (scheme == "dark")


@pytest.mark.slow
def test_pictures_load_and_notices_are_on_the_first_screen(browser: Any, tmp_path: Path) -> None:
    write_report(synthetic_comparison(tmp_path / "set"), tmp_path / "report.html", command=None)
    show(browser, tmp_path / "report.html", PHONE)
    assert browser.execute_script(
        "return [...document.images].length && [...document.images].every(i => i.naturalWidth > 0)"
    )
    bottom = browser.execute_script(
        "return document.querySelector('.notices').getBoundingClientRect().bottom"
    )
    assert bottom <= PHONE[1]


@pytest.mark.slow
def test_table_fits_a_desktop_and_a_phone_shows_the_test_accuracy(
    browser: Any, tmp_path: Path
) -> None:
    comparison = synthetic_comparison(tmp_path / "set")
    figures = {"test_spread": 0.011, "top5_accuracy": 0.99, "balanced_accuracy": 0.9}
    figures |= {"parameters": 1_536_000, "params": "shrinkage=0.2 (2 of 5 fits)"}
    outcomes = tuple(
        replace(each, result=replace(each.result, **figures)) if each.test else each
        for each in comparison.outcomes
    )
    report = tmp_path / "report.html"
    write_report(replace(comparison, outcomes=outcomes), report, command=None)
    show(browser, report, DESKTOP)
    wide, inner = browser.execute_script(
        "const box = document.querySelector('#heads .scroll');"
        "return [box.scrollWidth, box.clientWidth]"
    )
    assert wide <= inner
    show(browser, report, PHONE)
    right = browser.execute_script(
        "return document.querySelector('#heads tbody td').getBoundingClientRect().right"
    )
    assert right <= PHONE[0]


@pytest.mark.slow
def test_what_is_wider_than_the_window_says_so(browser: Any, tmp_path: Path) -> None:
    write_report(synthetic_comparison(tmp_path / "set"), tmp_path / "report.html", command=None)
    for size in (PHONE, DESKTOP):
        show(browser, tmp_path / "report.html", size)
        boxes = browser.execute_script(
            "return [...document.querySelectorAll('.scroll')].map(box => [box.ariaLabel,"
            "box.scrollWidth > box.clientWidth, box.querySelector('.hint').offsetHeight > 0])"
        )
        assert all(hint == wide for _, wide, hint in boxes)
        wide = {label for label, is_wide, _ in boxes if is_wide}
        assert wide >= {"All heads compared", "Map of the features"} or size == DESKTOP
        assert not wide or size == PHONE


@pytest.mark.slow
def test_hostile_class_is_text_and_the_policy_blocks_scripts(browser: Any, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    write_report(
        synthetic_comparison(tmp_path / "set", classes=(MARKUP, "dogs")), report, command="x"
    )
    show(browser, report, DESKTOP)
    assert MARKUP in browser.execute_script("return document.body.innerText")
    assert browser.execute_script("return document.querySelectorAll('[src=x], script').length") == 0
    # the policy would block even injected markup
    source = report.read_text("utf-8").replace(
        "<main>", "<main><script>document.title = 'ran'</script><p style='color: red'>"
    )
    report.write_text(source, "utf-8")
    show(browser, report, DESKTOP)
    assert browser.title != "ran"
    messages = [each["message"] for each in browser.get_log("browser")]
    assert len([each for each in messages if "Content Security Policy" in each]) == 2
