"""The page's door and guard, and walking through the queue; in Chromium: test_app_in_browser.py."""

import asyncio
import os
import re
import socket
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import httpx
import pytest
from command import assert_one_line, modules_loaded_by, run_command
from drawn_runs import KOREAN, MARKUP, copy_run, make_run
from nicegui import app as nicegui_app

from pipeline.review import open_review
from pipeline.review.walk import Walk
from pipeline.review.workbench import open_workbench
from pipeline.web.server import Guard, add_routes

pytest.importorskip("nicegui", reason="needs nicegui: pip install -e '.[app]'")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("app"))


@pytest.fixture
def drawn_run(template: Path, tmp_path: Path) -> Path:
    """A run of 60 drawn images in two classes, of which 12 are labelled as the other class."""
    return copy_run(template, tmp_path)


def test_failures_of_the_door_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is no run" in assert_one_line(run_command("app", "--no-browser", check=66))
    assert "does not exist" in assert_one_line(run_command("app", "results/nope", check=66))
    assert "--port needs" in assert_one_line(run_command("app", "--port", "70000", check=2))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} is in use" in assert_one_line(
            run_command("app", "--port", port, check=75)
        )
    monkeypatch.setitem(sys.modules, "nicegui", None)
    line = assert_one_line(run_command("app", check=69))
    assert line == "error: nicegui is missing: pip install -e '.[app]'"


def test_help_loads_no_web_server() -> None:
    assert not modules_loaded_by("app", "--help") & {"nicegui", "fastapi", "numpy"}


# ------------------------------------------------------------------------------------- guard


async def answer(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/html"), (b"content-length", b"17")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"<script></script>"})


async def get(path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(nicegui_app)) as client:
        return await client.get(f"http://127.0.0.1{path}")


def request(method: str = "GET", **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(Guard(answer, port=8000))
        async with httpx.AsyncClient(transport=transport) as client:
            named = {"host": "127.0.0.1:8000"} | {
                name.replace("_", "-"): value for name, value in headers.items()
            }
            return await client.request(method, "http://127.0.0.1:8000/", headers=named)

    return asyncio.run(send())


def test_scripts_of_the_page_have_the_nonce_of_its_policy() -> None:
    first, second = request(), request(host="localhost:8000", origin="http://localhost:8000")
    for response in (first, second):
        nonce = response.text.removeprefix('<script nonce="').removesuffix('"></script>')
        assert f"'nonce-{nonce}'" in response.headers["content-security-policy"]
        assert "'unsafe-inline'" not in response.headers["content-security-policy"].split(";")[1]
    assert first.text != second.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example:8000"}, 403),
        ({"host": "127.0.0.1:8001"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content_length": "3000000000"}, 413),
        ({"transfer_encoding": "chunked"}, 411),
    ],
)
def test_other_hosts_other_origins_and_large_requests_are_refused(
    headers: dict[str, str], status: int
) -> None:
    response = request("POST", **headers)
    assert response.status_code == status
    assert "script" not in response.text


def test_websocket_of_another_site_is_closed() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:8000"), (b"origin", b"http://evil.example")]
    scope = {"type": "websocket", "headers": headers}
    asyncio.run(Guard(answer, port=8000)(scope, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_reason_for_a_missing_picture_is_text_in_an_svg() -> None:
    add_routes(lambda: None, lambda *_: "a <script>&")
    response = asyncio.run(get("/picture/x/0"))
    assert response.headers["content-type"] == "image/svg+xml"
    assert ElementTree.fromstring(response.content)[0].text == "a <script>&"


# ------------------------------------------------------------------------------- walk, workbench


def test_each_key_edits_the_image_on_the_screen(drawn_run: Path) -> None:
    review = open_review(drawn_run)
    walk = Walk(review)
    items = review.queue()
    assert [item.row for item in items] == walk.rows
    said = []
    for key in ("Enter", "k", "1", "D"):
        said.append(walk.press(key, walk.shown))
        assert said[-1].startswith("Saved: ")
    edits = review.labels.edits()
    labels = review.table.columns.labels
    expected = [items[0].suggested, None, None if labels[items[2].row] == 0 else 0, -1]
    assert [edits[item.row].label for item in items[:4]] == expected
    assert walk.progress == f"4 of {len(items)} images reviewed"
    assert walk.press("u", walk.shown).endswith("is as before")
    assert walk.item == items[3]
    assert walk.press("9", walk.shown) == "There is no class 9"
    assert len(review.labels.edits()) == 3


def test_keys_faster_than_the_screen_are_for_the_images_that_followed(drawn_run: Path) -> None:
    review = open_review(drawn_run)
    walk, other, items = Walk(review), Walk(review), review.queue()
    first = walk.shown
    assert walk.press("Enter", first).startswith("Saved")
    assert walk.press("k", first).startswith("Saved")
    other.refresh()
    other.press("d", other.shown)  # the third
    assert walk.press("k", first).startswith("Not done")
    assert walk.press("Enter", first).startswith("Not done")
    assert walk.item == items[3]
    edits = review.labels.edits()
    assert [edits[item.row].label for item in items[:3]] == [items[0].suggested, None, -1]
    assert len(edits) == 3


def test_key_for_an_image_that_another_window_edited_is_not_for_the_next(drawn_run: Path) -> None:
    review = open_review(drawn_run)
    walk, other, items = Walk(review), Walk(review), review.queue()
    shown = walk.shown
    other.press("d", other.shown)
    assert walk.refresh()
    assert walk.item == items[1]
    assert walk.press("Enter", shown).startswith("Not done")
    assert list(review.labels.edits()) == [items[0].row]
    assert not walk.refresh()


def test_queue_ends_when_every_image_is_reviewed(drawn_run: Path) -> None:
    walk = Walk(open_review(drawn_run))
    presses = 0
    while walk.item is not None:
        assert walk.press("Enter", walk.shown).startswith("Saved")
        presses += 1
    assert walk.progress == f"{presses} of {presses} images reviewed"
    assert walk.press("Enter", walk.shown).startswith("Not done")
    assert walk.press("Backspace", walk.shown).startswith("Saved")
    assert walk.item is not None


def test_training_again_is_compared_and_adopted(drawn_run: Path) -> None:
    bench = open_workbench(drawn_run)
    assert bench.table()[0] == ["head", "input", "accuracy"]
    walk = Walk(bench.review)  # type: ignore[arg-type]
    while walk.item is not None:
        walk.press("Enter", walk.shown)
    bench.train()
    header, ((head, _, before, after, difference),) = bench.table()
    both, *notices = bench.comparison_lines()
    assert re.search(r"By the new labels, .* [\d.]+ % before and 100.0 % after, of 60 test", both)
    assert not notices
    assert header[2:] == ["before", "after", "difference"]
    assert (head, bench.stage) == ("logistic", "")
    assert float(after.split()[0]) > float(before.split()[0])
    assert difference.startswith("+")
    token = bench.token
    bench.adopt()
    assert bench.run != drawn_run
    assert bench.picture(token, 0, 64) == "there is no such picture"
    assert bench.comparison is None


def test_picture_is_predicted_and_an_unreadable_one_has_a_reason(
    drawn_run: Path, template: Path
) -> None:
    bench = open_workbench(drawn_run)
    bench.warm_up()
    image = next((template.parents[1] / "set" / MARKUP).iterdir())
    prediction = bench.predict(image)
    assert not isinstance(prediction, str)
    assert set(prediction.classes) == {MARKUP, KOREAN}
    assert all(
        each.startswith("data:image/jpeg;base64,/9j/") for each in bench.pictures(image, prediction)
    )
    for content, reason in ((b"", "empty"), (b"GIF89a", "not an image"), (os.urandom(999), "not")):
        Path("odd").write_bytes(content)
        said = bench.predict(Path("odd"))
        assert isinstance(said, str)
        assert reason in said, said


def test_pictures_are_of_rows_of_this_review(drawn_run: Path) -> None:
    bench = open_workbench(drawn_run)
    shown = bench.picture(bench.token, 0, 64)
    assert isinstance(shown, bytes)
    for arguments in (("0", 0, 64), (bench.token, -1, 64), (bench.token, 60, 64)):
        assert isinstance(bench.picture(*arguments), str)
    assert isinstance(bench.picture(bench.token, 0, 10**6), str)
    gone = open_workbench(drawn_run, images="gone")
    assert isinstance(gone.picture(gone.token, 0, 64), str)
    assert gone.table()[1]
