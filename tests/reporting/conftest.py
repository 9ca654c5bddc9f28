"""A small study to report, and a real browser, driven by its DevTools protocol, to read the page with."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import nn

from saliency_lab.study import Study


def net(seed, channels=1, side=6):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(4 * (side - 2) ** 2, 3)
        return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), head).eval()


@pytest.fixture(scope="session")
def make_reported():
    """A study of untrained networks: as small as it gets, and every part of it asked for by name."""

    def make(
        models=("plain", "other"),
        *,
        seeds=1,
        n=15,
        channels=1,
        side=6,
        methods=("saliency", "input_x_gradient", "edges"),
        metrics=("sparseness", "pixel_flipping"),
        eps=(0.05, 0.2),
        store=None,
    ):
        x = torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0))
        nets = {
            name: [net(10 * i + j, channels, side) for j in range(seeds)] for i, name in enumerate(models)
        }
        study = Study(nets, (x, torch.arange(n) % 3), store=store)
        if methods:
            study.attribute(methods)
        if metrics:
            study.score(metrics)
        if eps:
            study.attack("pgd", eps=eps, steps=2)
        return study

    return make


@pytest.fixture(scope="session")
def reported(make_reported, tmp_path_factory):
    """A study with all that a page can show, in a store; not to be changed."""

    def shifted(model, x, y, maps):
        """Another number a network, so that some scores differ for certain."""
        return maps.abs().sum((1, 2, 3)) + model[0].weight.sum()

    metrics = {"sparseness": {}, "pixel_flipping": {}, "shifted": shifted}
    study = make_reported(metrics=metrics, store=tmp_path_factory.mktemp("reported") / "store")
    return study.audit("pgd", eps=0.05, images=4, steps=2)


class Browser:
    """A headless Chromium with one page; `call` is a command of the DevTools protocol."""

    def __init__(self, program, folder):
        websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")
        options = [
            "--headless=new",
            "--disable-gpu",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "--remote-allow-origins=*",
            "--disable-background-networking",
            "--no-first-run",
        ]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium refuses to run as root with it
        self.process = subprocess.Popen(
            [program, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        announced = Path(folder) / "DevToolsActivePort"
        self._wait(lambda: announced.exists() and announced.read_text().count("\n") > 0)
        port = announced.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            targets = json.load(answer)
        (target,) = (each for each in targets if each["type"] == "page")
        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=60)
        self.numbers = itertools.count(1)
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    @staticmethod
    def _wait(condition, seconds=60):
        until = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < until, "the browser did not answer in time"
            time.sleep(0.05)
        return found

    def call(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, path, *, width=1280, height=900, dark=False):
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=Path(path).as_uri())
        self._wait(
            lambda: self.run(
                "document.readyState === 'complete' && (!document.getElementById('explorer-data') || "
                "document.documentElement.dataset.ready === 'yes')"
            )
        )
        return self

    def run(self, script):
        """Value of a JavaScript expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def settle(self):
        """Wait until what an input has started is painted."""
        frames = "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60)))"
        self.run(f"new Promise((done) => {frames})")

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            named = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type=kind, **named, **text)

    def click(self, selector):
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
        self.settle()

    def choose(self, selector, value):
        """Give a form's control a value, as a user does."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            f"e.value = {json.dumps(value)};"
            "e.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
        self.settle()

    def quit(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    found = Browser(program, tmp_path_factory.mktemp("browser"))
    yield found
    found.quit()
