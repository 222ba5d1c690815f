"""The page in Chromium, used as a person uses it: mouse, keys, dropped files, two windows."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run_command
from drawn_runs import MARKUP, copy_run, make_run
from PIL import Image

from pipeline.review import open_review

pytestmark = pytest.mark.slow
pytest.importorskip("nicegui", reason="needs nicegui: pip install -e '.[app]'")
PHONE, DESKTOP = (360, 740), (1280, 900)
ENTER = "\ue007"

CUT_OFF = """
return [...document.querySelectorAll('body *')].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width && !element.closest('.scroll, .q-notifications, .q-tabs, .q-loading-bar')
    && (box.left < -1 || box.right > innerWidth + 1);
}).map(element => element.outerHTML.slice(0, 200));
"""
DROP = """
const [input, name] = [arguments[0], arguments[1]];
const bytes = Uint8Array.from(atob(arguments[2]), c => c.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], name));
const event = arguments[3] === 'drop'
  ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })
  : new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true });
document.querySelector('.drop').dispatchEvent(event);
"""


class Browser:
    """A Chromium window."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str, size: tuple[int, int] = DESKTOP) -> None:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get("about:blank")  # the page of a killed server tries to reconnect
        self.problems()
        self.driver.get(address)
        self.until(lambda: self.js("return !!document.querySelector('.q-tab')"))

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def until(self, condition: Callable[[], Any], seconds: float = 15) -> Any:
        """Return what the condition returns, as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, self.js("return document.body.innerText")
            time.sleep(0.01)
        return value

    def text(self, selector: str) -> str:
        shown = self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        return str(shown)

    def tab(self, name: str) -> None:
        self.js(
            "[...document.querySelectorAll('.q-tab')]"
            ".find(tab => tab.innerText.trim() === arguments[0]).click()",
            name,
        )

    def click(self, label: str) -> None:
        self.js(
            "[...document.querySelectorAll('button')]"
            ".find(button => button.innerText.includes(arguments[0])).click()",
            label,
        )

    def keys(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.driver, duration=0).send_keys(key).perform()

    def shown(self) -> str:
        return str(self.js("return document.querySelector('[data-shown] .big')?.title ?? ''"))

    def press(self, key: str) -> None:
        """Press a key in Mend, and wait until the next image is on the screen."""
        before = self.js("return document.querySelector('[data-shown]').dataset.shown")
        self.keys(key)
        self.until(
            lambda: self.js("return document.querySelector('[data-shown]').dataset.shown") != before
        )

    def drop(self, path: Path, kind: str = "drop") -> None:
        import base64

        self.js(DROP, None, path.name, base64.b64encode(path.read_bytes()).decode(), kind)

    def problems(self) -> list[str]:
        return [each["message"] for each in self.driver.get_log("browser")]

    def requested(self) -> list[str]:
        """Return the addresses that were requested since the last call."""
        events = [
            json.loads(each["message"])["message"] for each in self.driver.get_log("performance")
        ]
        sent = (each["params"] for each in events if each["method"].endswith("requestWillBeSent"))
        return [each["request"]["url"] for each in sent]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver on PATH")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: '.[dev]'")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage",
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield Browser(driver)
    driver.quit()


@contextlib.contextmanager
def serving(run: Path, *options: str | Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start the command; yield its address and process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.app", run, "--no-browser", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        yield process.stdout.readline().split()[0], process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("app"), mislabelled=12)


@pytest.fixture
def drawn_run(template: Path, tmp_path: Path) -> Path:
    return copy_run(template, tmp_path)


@pytest.fixture(scope="module")
def address(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page for the tests that edit nothing."""
    with serving(copy_run(template, tmp_path_factory.mktemp("page"))) as (address, _):
        yield address


def saved_rows(run: Path) -> dict[str, str]:
    """Return path -> new label of the run's labels file."""
    text = (run / "labels.csv").read_text("utf-8-sig")
    return {row["path"]: row["new_label"] for row in csv.DictReader(io.StringIO(text))}


def test_names_are_text_and_every_tab_fits_a_phone_and_asks_no_other_host(
    browser: Browser, address: str
) -> None:
    picture = Path("picture.png")
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(picture)
    browser.requested()
    browser.problems()
    for size in (DESKTOP, PHONE):
        browser.open(address, size)
        browser.until(lambda: browser.shown())
        assert MARKUP in browser.text("body")
        browser.tab("Look")
        browser.until(lambda: browser.js("return !!document.querySelector('canvas')"))
        browser.until(lambda: len(browser.js("return document.querySelectorAll('figure')")) > 9)
        browser.js(
            "const map = document.querySelector('canvas'), box = map.getBoundingClientRect();"
            "for (let x = 0; x < box.width; x += 9) for (let y = 0; y < box.height; y += 20)"
            "  map.dispatchEvent(new MouseEvent('mousemove', {bubbles: true,"
            "    clientX: box.x + x, clientY: box.y + y}))"
        )
        assert browser.js(CUT_OFF) == []
        browser.js("document.querySelector('.tile').click()")
        browser.until(lambda: MARKUP in browser.text(".dialog"))
        browser.click("Close")
        browser.tab("Compare")
        browser.until(lambda: "logistic" in browser.text("table"))
        assert browser.js(CUT_OFF) == []
        browser.tab("Try")
        browser.until(lambda: browser.js("return !!document.querySelector('.picker')"))
        browser.drop(picture)
        browser.until(lambda: MARKUP in browser.text(".q-tab-panel"))
        assert browser.js(CUT_OFF) == []
        wide, inner = browser.js("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner
        assert browser.js("return document.querySelectorAll('[src=x], [onerror]').length") == 0
        assert browser.problems() == []
    hosts = {each.split("/")[2] for each in browser.requested() if each.startswith("http")}
    assert hosts == {address.split("/")[2]}


def test_fast_keys_each_act_on_the_image_of_their_turn(browser: Browser, drawn_run: Path) -> None:
    items = open_review(drawn_run).queue()[:20]
    keys = [ENTER if number % 3 else "k" for number in range(20)]
    with serving(drawn_run) as (address, _):
        browser.open(address)
        browser.until(lambda: browser.shown())
        browser.js(
            "for (const [turn, key] of arguments[0].entries()) setTimeout(() =>"
            " document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true})),"
            " turn * 40)",
            ["Enter" if key == ENTER else key for key in keys],
        )
        browser.until(lambda: browser.text("h2").startswith("20 of"))
    review = open_review(drawn_run)
    edits = review.labels.edits()
    for item, key in zip(items, keys, strict=True):
        assert edits[item.row].label == (item.suggested if key == ENTER else None)


def test_keys_in_a_field_and_held_keys_edit_nothing(browser: Browser, drawn_run: Path) -> None:
    with serving(drawn_run) as (address, _):
        browser.open(address)
        browser.until(lambda: browser.shown())
        browser.js(
            "document.body.dispatchEvent(new KeyboardEvent('keydown',"
            " {key: 'd', bubbles: true, repeat: true}));"
            "const field = document.body.appendChild(document.createElement('input'));"
            "field.focus()"
        )
        browser.keys("d", "k", "1", ENTER)
        browser.js("document.querySelector('input').remove()")
        browser.press("k")
    assert list(saved_rows(drawn_run).values()) == [""]


def test_map_and_list_show_an_edit_at_once(browser: Browser, drawn_run: Path) -> None:
    with serving(drawn_run) as (address, _):
        browser.open(address)
        browser.tab("Look")
        browser.until(lambda: browser.text("figcaption"))
        browser.js("document.querySelector('.tile').click()")
        browser.until(lambda: browser.text(".dialog"))
        browser.click("Drop")
        browser.until(lambda: browser.text("figcaption").startswith("dropped"))
    assert len(saved_rows(drawn_run)) == 1


def test_two_windows_and_a_killed_server_lose_no_edit(browser: Browser, drawn_run: Path) -> None:
    saved: set[str] = set()

    def note() -> None:
        if found := re.match(r"Saved: (.*) (is|keeps) ", browser.text(".saved")):
            saved.add(found[1])

    with serving(drawn_run) as (address, process):
        windows = [browser.driver.current_window_handle]
        browser.open(address)
        browser.driver.switch_to.new_window("window")
        windows.append(browser.driver.current_window_handle)
        browser.open(address)
        for turn in range(8):
            browser.driver.switch_to.window(windows[turn % 2])
            browser.until(lambda: browser.text("h2").startswith(f"{len(saved)} of"))
            browser.press(ENTER if turn % 3 else "k")
            browser.until(lambda: browser.text(".saved"))
            note()
            assert len(saved) == turn + 1
        assert saved == saved_rows(drawn_run).keys()
        for _ in range(5):
            browser.keys("k")
            note()
        process.kill()
        note()
        browser.driver.close()
        browser.driver.switch_to.window(windows[0])
    assert saved <= saved_rows(drawn_run).keys()


def test_what_is_no_picture_is_refused_in_one_sentence(browser: Browser, address: str) -> None:
    Image.new("RGB", (10_000, 10_000)).save("large.png")
    Path("text.jpg").write_text("no picture")
    Path("empty.png").write_bytes(b"")
    Path("cut.png").write_bytes(Path("large.png").read_bytes()[:999])
    browser.open(address)
    browser.tab("Try")
    browser.until(lambda: browser.js("return !!document.querySelector('.drop')"))
    for name in ("text.jpg", "large.png", "empty.png", "cut.png"):
        browser.js("document.querySelectorAll('.warn').forEach(each => each.remove())")
        picker = browser.driver.find_element("css selector", "input[type=file]")
        picker.send_keys(os.fspath(Path(name).resolve()))
        browser.until(lambda: browser.text(".q-tab-panel .warn").startswith("No prediction: "))
        assert "\n" not in browser.text(".q-tab-panel .warn")
    browser.click("Use the camera")
    browser.until(lambda: browser.js("return document.querySelector('video')?.videoWidth"))
    browser.click("Take the picture")
    browser.until(lambda: browser.text(".q-tab-panel .says"))


def test_run_without_its_images_is_reviewed_without_pictures_until_ctrl_c(
    browser: Browser, template: Path, tmp_path: Path
) -> None:
    run = copy_run(template, tmp_path)
    with serving(run, "--images", "gone") as (address, process):
        browser.open(address)
        browser.until(lambda: browser.js("return !!document.querySelector('[data-shown]')"))
        assert len(browser.js("return document.querySelectorAll('p.warn')")) == 1
        browser.press("k")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "error: stopped"
    assert len(saved_rows(run)) == 1


SPELLINGS = (
    "/etc/passwd", "//etc/passwd", "/../../../../etc/passwd", "/..%2f..%2f..%2f..%2fetc/passwd",
    "/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/picture/{token}//etc/passwd",
    "/picture/{token}/0/../../x",
    "/picture/{token}/..%2f..%2fetc%2fpasswd", "/picture/{token}/0?side=64&path=/etc/passwd",
    "/_nicegui/{version}/static/../../../../../../../../etc/passwd", "/picture/%00/0",
    "/_nicegui/{version}/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
    "/_nicegui/{version}/static//etc/passwd", "/_nicegui/{version}/static/%2fetc%2fpasswd",
    "/_nicegui/{version}/resources/x/..%2f..%2fetc/passwd",
    "/?path=/etc/passwd", "/?file=/etc/passwd",
    "/_nicegui/{version}/esm/nicegui-echart/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
    "/_nicegui/{version}/libraries//etc/passwd", "/_nicegui/{version}/components//etc/passwd",
    "/file:///etc/passwd", "/\\..\\..\\etc\\passwd", "/docs", "/openapi.json",
)  # fmt: skip

CLOSE = "Connection: close\r\n\r\n"
SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport="


def exchange(port: int, request: str) -> str:
    """Send a request as it is written; return the response."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(request.encode("latin-1"))
        parts = []
        with contextlib.suppress(TimeoutError):
            while part := connection.recv(65536):
                parts.append(part)
    return b"".join(parts).decode("latin-1")


def test_only_this_host_is_answered_and_no_file_of_the_disk(browser: Browser, address: str) -> None:
    nicegui = pytest.importorskip("nicegui")
    host = address.removeprefix("http://")
    port = int(host.rpartition(":")[2])
    browser.open(address)
    browser.until(lambda: browser.shown())
    token = browser.js("return document.querySelector('.big').src").split("/")[4]
    for spelling in SPELLINGS:
        path = spelling.format(token=token, version=nicegui.__version__)
        got = exchange(port, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        assert "root:" not in got, path
        status = got.split()[1]
        assert status[0] == "4" or path.startswith(("/?", "/picture/")), (path, status)
    for bad in (f"Host: evil.example:{port}", f"Host: {host}\r\nOrigin: http://evil.example"):
        for path in (
            "/",
            f"/picture/{token}/0",
            "/_nicegui_ws/socket.io/?EIO=4&transport=polling",
        ):
            got = exchange(port, f"GET {path} HTTP/1.1\r\n{bad}\r\nConnection: close\r\n\r\n")
            assert got.split()[1] == "403"
        upgrade = (
            f"GET {SOCKET}websocket HTTP/1.1\r\n{bad}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert exchange(port, upgrade).split()[1] == "403"
    tables = "".join(Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    listening = re.findall(rf": (\w+):{port:04X} \w+:0000 0A", tables)
    assert listening == ["0100007F"]


@pytest.mark.real_data
def test_planted_label_errors_are_mended_and_the_head_is_trained_again(
    browser: Browser, assets: Path, tmp_path: Path
) -> None:
    source, planted = assets / "data" / "cats_and_dogs" / "train", set()
    random = np.random.default_rng(0)
    for name, other in (("cats", "dogs"), ("dogs", "cats")):
        wrong = set(random.choice(500, 10, replace=False).tolist())
        for number, file in enumerate(sorted((source / name).iterdir())[:500]):
            target = tmp_path / "pets" / (other if number in wrong else name) / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
            if number in wrong:
                planted.add(f"{other}/{file.name}")
    weights = assets / "weights" / "mobilenet_v2_imagenet_notop.weights.h5"
    options = ("--base", "mobilenet_v2", "--weights", weights, "--image-size", "160")
    run_command("extract", tmp_path / "pets", *options, "--engine", "onnx")
    run_command("classify", "--heads", "logistic")
    (run,) = Path("results").iterdir()
    cat = next((assets / "data" / "cats_and_dogs" / "test" / "cats").iterdir())
    with serving(run) as (address, _):
        browser.open(address)
        browser.until(lambda: browser.shown())
        time.sleep(5)  # the base is loaded in the background
        browser.tab("Try")
        browser.until(lambda: browser.js("return !!document.querySelector('.picker')"))
        started = time.monotonic()
        browser.drop(cat)
        browser.until(lambda: browser.text(".q-tab-panel .says"))
        assert time.monotonic() - started < 2
        assert browser.text(".q-tab-panel .says").startswith("cats")
        assert "Heat map" in browser.text(".q-tab-panel")
        assert browser.js("return document.querySelector('.q-tab-panel .big').naturalWidth") > 200
        browser.tab("Mend")
        browser.until(lambda: browser.shown())
        presses = 0
        left = set(planted)
        while left and presses < 60:
            path = browser.shown()
            browser.press(ENTER if path in left else "k")
            left.discard(path)
            presses += 1
        assert not left
        browser.tab("Compare")
        browser.until(lambda: "logistic" in browser.text("table"))
        started = time.monotonic()
        browser.click("Train again")
        browser.until(lambda: "after" in browser.text("table"))
        assert time.monotonic() - started < 10
        before, after = re.findall(r"(\d+\.\d) % \(", browser.text("table"))
        assert float(after) > float(before)
        assert browser.problems() == []
    right = {path: "cats" if "cat." in path else "dogs" for path in planted}
    assert {path: label for path, label in saved_rows(run).items() if path in planted} == right
