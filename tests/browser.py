"""A headless Chromium, driven over its DevTools protocol: opens pages, evaluates JavaScript, takes screenshots."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZE = (1600, 1000)

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


class Page:
    """One page of the browser.

    Args:
        address: Where its DevTools listen.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def seen(self, url: str, script: str, until: str, picture: Path | None = None) -> Any:
        """Opens a page, waits until an expression is true, and returns the value of a script.

        Args:
            url: The page.
            script: JavaScript.
            until: JavaScript; once a second at most 20 times.
            picture: Where a screenshot is saved.
        """
        return asyncio.run(self._seen(url, script, until, picture))

    async def _seen(self, url: str, script: str, until: str, picture: Path | None) -> Any:
        async with aiohttp.ClientSession() as session:
            async with session.put(f"{self._address}/json/new?about:blank") as answer:
                target = await answer.json(content_type=None)
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                await _called(socket, "Page.navigate", url=url)
                deadline = time.monotonic() + 20
                while not await _value(socket, until):
                    assert time.monotonic() < deadline, f"{url} does not show {until}"
                    await asyncio.sleep(0.2)
                await asyncio.sleep(0.5)  # for what moves into its place
                if picture is not None:
                    found = await _called(socket, "Page.captureScreenshot")
                    picture.write_bytes(base64.b64decode(found["data"]))
                return await _value(socket, script)


async def _called(socket: Any, method: str, **arguments: Any) -> dict[str, Any]:
    await socket.send_json({"id": 1, "method": method, "params": arguments})
    while True:
        message = json.loads((await socket.receive()).data)
        if message.get("id") == 1:
            return dict(message["result"])


async def _value(socket: Any, script: str) -> Any:
    return (await _called(socket, "Runtime.evaluate", expression=script, returnByValue=True))["result"].get("value")


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
            deadline = time.monotonic() + 30
            while not (port.is_file() and port.read_text().count("\n")):
                assert time.monotonic() < deadline, "Chromium did not start"
                time.sleep(0.1)
            yield Page(f"http://127.0.0.1:{port.read_text().splitlines()[0]}")
        finally:
            process.terminate()
