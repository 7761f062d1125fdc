"""A headless Chromium, spoken to through a pipe: pages are opened, clicked and looked at. No network, no library."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """Open until closed; `events` are what it told since."""

    def __init__(self) -> None:
        to_it, ours = os.pipe()
        theirs, from_it = os.pipe()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        words = f"--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir={self.folder.name}"
        quiet = "--no-first-run --disable-background-networking --disable-component-update --disable-sync"
        wired = f'exec "$0" "$@" 3<&{to_it} 4>&{from_it}'  # Chromium reads from 3 and writes to 4
        self.process = subprocess.Popen(
            ["bash", "-c", wired, str(CHROMIUM), *words.split(), *quiet.split()],
            pass_fds=(to_it, from_it),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_it)
        os.close(from_it)
        self.write, self.read = os.fdopen(ours, "wb"), os.fdopen(theirs, "rb")
        self.waiting, self.number = b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def open(self, url: str, width: int = 1280, dark: bool = False) -> None:
        """A page at a width, its picture still to be taken."""
        self.events.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._take()

    def do(self, script: str) -> Any:
        """The value of an expression of JavaScript, awaited."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            told = {"Tab": {"windowsVirtualKeyCode": 9}, "Enter": {"windowsVirtualKeyCode": 13, "text": "\r"}}
            told[" "] = {"windowsVirtualKeyCode": 32, "text": " "}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, **told[key])

    def picture(self, path: Path) -> None:
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def ask(self, method: str, **told: Any) -> dict[str, Any]:
        self.number += 1
        asked = {"id": self.number, "method": method, "params": told}
        if self.session:
            asked["sessionId"] = self.session
        self.write.write(json.dumps(asked).encode() + b"\0")
        self.write.flush()
        while True:
            said = self._take()
            if said.get("id") == self.number:
                assert "error" not in said, said
                return said["result"]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.write.close()
        self.read.close()
        self.folder.cleanup()

    def _take(self) -> dict[str, Any]:
        """The next message; an event is kept."""
        while b"\0" not in self.waiting:
            more = os.read(self.read.fileno(), 1 << 20)
            assert more, "Chromium is gone"
            self.waiting += more
        first, _, self.waiting = self.waiting.partition(b"\0")
        said: dict[str, Any] = json.loads(first)
        if "method" in said:
            self.events.append(said)
        return said
