"""A report in a real browser: it loads from disk, the slider moves, and nothing complains."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sintrovae_jax.reports import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tab:
    """A page of a browser, by its DevTools protocol. complaints: what it says on its console and in its log."""

    def __init__(self, address: str):
        websocket = pytest.importorskip("websocket", reason="needs websocket-client")
        self._socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self._number, self.complaints, self.requests = 0, [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while (answer := self._read()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict:
        message = json.loads(self._socket.recv())
        kind = message.get("method", "")
        if kind in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(message["params"])
        if kind == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message

    def load(self, path: Path) -> None:
        self.call("Page.navigate", url=path.as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


@pytest.fixture
def tab(tmp_path) -> Iterator[Tab]:
    if not BROWSER:
        pytest.skip("needs chromium or Chrome")
    pytest.importorskip("websocket", reason="needs websocket-client")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
    command = [BROWSER, *options, f"--user-data-dir={tmp_path / 'browser'}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        place = next(line for line in process.stderr if "DevTools listening on" in line).split()[-1]
        port = place.split(":")[2].split("/")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=60) as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        yield Tab(pages[0]["webSocketDebuggerUrl"])
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


SHOWN = "[...document.querySelectorAll('[data-frames] img')].filter(i => !i.hidden).map(i => i.alt)"
MOVE = "const r = document.querySelector('#step'); r.value = 0; r.dispatchEvent(new Event('input')); r.max"
COLOUR = "getComputedStyle(document.querySelector('{}')).{}"


@pytest.mark.soak
def test_a_report_works_in_a_browser(trained, tmp_path, tab):
    run = Path(shutil.copytree(trained, tmp_path / "a run"))
    path = report.write(run)
    backgrounds, inks = set(), set()
    for scheme in ("light", "dark"):
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        for width in (390, 1280):
            tab.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
            )
            tab.load(path)
            assert tab.value("document.documentElement.scrollWidth") <= width, "nothing sticks out"
        backgrounds.add(tab.value(COLOUR.format("body", "backgroundColor")))
        inks.add(tab.value(COLOUR.format("svg text", "fill")))
    assert len(backgrounds) == len(inks) == 2, "page and curves have other colours in the dark"
    names = ("samples", "reconstructions", "interpolations")
    assert tab.value(SHOWN) == [f"{name} at step 60" for name in names]
    assert tab.value(MOVE) == "1"
    assert tab.value(SHOWN) == [f"{name} at step 30" for name in names]
    assert tab.value("document.querySelector('output').textContent") == "30"
    assert tab.value("[...document.images].every(i => i.hidden || (i.complete && i.naturalWidth > 0))")
    tab.value("document.querySelector('.zoom').click()")
    assert tab.value("document.querySelectorAll('.zoom.full').length") == 1
    assert tab.complaints == []
    assert {url.partition(":")[0] for url in tab.requests} == {"file", "data"}
    assert {url for url in tab.requests if url.startswith("file:")} == {path.as_uri()}
