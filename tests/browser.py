"""A headless Chromium, driven over its DevTools protocol: opens pages, evaluates JavaScript, takes screenshots."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZE = (1600, 1000)
SECONDS = 60.0
"""How long a page is waited for: a browser has many processes, and the machine may do much else."""

# Images of a page, whatever shadow roots they are in.
IMAGES = """(() => {
  const all = root => [...root.querySelectorAll('*')].flatMap(e => e.shadowRoot ? [e, ...all(e.shadowRoot)] : [e]);
  return all(document).filter(e => e.tagName === 'IMG' && e.naturalWidth > 300).map(e => {
    const box = e.getBoundingClientRect();
    return {src: e.src, width: box.width, height: box.height, natural: e.naturalWidth, top: box.top, left: box.left};
  });
})()"""
TEXT = """(() => {
  const text = root => [...root.childNodes].map(e =>
    e.nodeType === 3 ? e.data : e.tagName === 'STYLE' || e.tagName === 'SCRIPT' ? '' :
    (e.shadowRoot ? text(e.shadowRoot) : '') + ' ' + text(e)).join(' ');
  return text(document.body).replace(/\\s+/g, ' ');
})()"""


def chromium() -> str | None:
    """The path of the browser, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class BrowserError(RuntimeError):
    """The browser refuses a command, such as an expression while a page is being replaced."""


class Page:
    """One page of the browser.

    Args:
        address: Where its DevTools listen.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def seen(self, url: str, script: str, until: str, picture: Path | None = None) -> Any:
        """Opens a page, waits until an expression is true, and returns the value of a script.

        Args:
            url: The page.
            script: JavaScript.
            until: JavaScript; asked for as long as the page is given.
            picture: Where a screenshot is saved.
        """
        return asyncio.run(self._seen(url, script, until, picture))

    async def _seen(self, url: str, script: str, until: str, picture: Path | None) -> Any:
        async with aiohttp.ClientSession() as session:
            async with session.put(f"{self.address}/json/new?about:blank") as answer:
                target = await answer.json(content_type=None)
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                await _called(socket, "Page.navigate", url=url)
                await _shown(socket, url, until)
                value = await _still(socket, url, script)
                if picture is not None:
                    found = await _called(socket, "Page.captureScreenshot")
                    picture.write_bytes(base64.b64decode(found["data"]))
                return value


async def _shown(socket: Any, url: str, until: str) -> None:
    """Waits until an expression is true."""
    deadline = time.monotonic() + SECONDS
    while not await _value(socket, until):
        assert time.monotonic() < deadline, f"{url} does not show {until}"
        await asyncio.sleep(0.2)


async def _still(socket: Any, url: str, script: str) -> Any:
    """The value of an expression once all has moved into its place: half a second later it is the same."""
    deadline, former = time.monotonic() + SECONDS, await _value(socket, script)
    while True:
        await asyncio.sleep(0.5)
        value = await _value(socket, script)
        if value == former:
            return value
        assert time.monotonic() < deadline, f"{url} does not come to rest"
        former = value


async def _called(
    socket: Any, method: str, events: list[dict[str, Any]] | None = None, **arguments: Any
) -> dict[str, Any]:
    """The result of a command; what else the browser says meanwhile is added to ``events``."""
    await socket.send_json({"id": 1, "method": method, "params": arguments})
    while True:
        message = json.loads((await socket.receive()).data)
        if message.get("id") == 1:
            if "error" in message:
                raise BrowserError(f"{method}: {message['error']}")
            return dict(message["result"])
        if events is not None:
            events.append(message)


async def _value(socket: Any, script: str) -> Any:
    """The value of an expression; None while the page is between two documents."""
    with suppress(BrowserError):
        return (await _called(socket, "Runtime.evaluate", expression=script, returnByValue=True))["result"].get("value")
    return None


class Tab:
    """An open page that is driven step by step.

    Attributes:
        requests: The addresses that it has asked for.
        errors: What its scripts have thrown, and what the browser has refused it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self._loop, self._socket = loop, socket
        self._events: list[dict[str, Any]] = []

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol."""
        return self._loop.run_until_complete(_called(self._socket, method, self._events, **arguments))

    def value(self, script: str) -> Any:
        """The value of an expression; that of a promise, once it has one."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, until: str) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self._is(until):
            assert time.monotonic() < deadline, f"the page does not show {until}; {self.errors}"
            time.sleep(0.05)

    def _is(self, expression: str) -> bool:
        with suppress(BrowserError):
            return bool(self.value(expression))
        return False

    def press(self, key: str) -> None:
        """Presses a key, such as ``ArrowLeft``, ``Tab`` or ``Enter``."""
        codes = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Enter": 13, " ": 32}
        about = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key]}
        text = {"text": {"Enter": "\r", " ": " "}[key]} if key in ("Enter", " ") else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def resize(self, width: int, height: int) -> None:
        """Gives the page another size, in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def prefer(self, scheme: str) -> None:
        """Tells the page that its reader prefers ``"dark"`` or ``"light"``."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path) -> None:
        """Saves a screenshot."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    @property
    def requests(self) -> list[str]:
        self.call("Runtime.evaluate", expression="0")
        sent = [event["params"] for event in self._events if event.get("method") == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    @property
    def errors(self) -> list[str]:
        self.call("Runtime.evaluate", expression="0")
        thrown = [event for event in self._events if event.get("method") == "Runtime.exceptionThrown"]
        entries = [event for event in self._events if event.get("method") == "Log.entryAdded"]
        refused = [event for event in entries if event["params"]["entry"]["level"] == "error"]
        return [json.dumps(event["params"])[:600] for event in (*thrown, *refused)]


@contextmanager
def tab(page: Page, url: str, offline: bool = True, **size: int) -> Iterator[Tab]:
    """Opens a page, by default with the network off, in a tab of its own."""
    loop = asyncio.new_event_loop()

    async def opened() -> tuple[aiohttp.ClientSession, Any]:
        session = aiohttp.ClientSession()
        async with session.put(f"{page.address}/json/new?about:blank") as answer:
            target = await answer.json(content_type=None)
        return session, await session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)

    session, socket = loop.run_until_complete(opened())
    try:
        found = Tab(loop, socket)
        for domain in ("Network", "Runtime", "Log", "Page"):
            found.call(f"{domain}.enable")
        if offline:
            found.call(
                "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
            )
        found.resize(**{"width": SIZE[0], "height": SIZE[1], **size})
        found.call("Page.navigate", url=url)
        # The empty page that it begins with is complete, too.
        found.wait("location.href !== 'about:blank' && document.readyState === 'complete'")
        yield found
        found.call("Page.close")
    finally:
        loop.run_until_complete(socket.close())
        loop.run_until_complete(session.close())
        loop.close()


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Starts the browser with its files in a folder, and ends it."""
    path, size = chromium(), ",".join(map(str, SIZE))
    assert path is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
    command = [path, *options, f"--window-size={size}", f"--user-data-dir={folder}", "about:blank"]
    port = folder / "DevToolsActivePort"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + SECONDS
            while not (port.is_file() and port.read_text().count("\n")):
                assert time.monotonic() < deadline, "Chromium did not start"
                time.sleep(0.1)
            yield Page(f"http://127.0.0.1:{port.read_text().splitlines()[0]}")
        finally:
            process.terminate()
