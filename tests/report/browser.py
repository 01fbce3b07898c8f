"""Open a page in headless Chromium and read what became of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")


def page_after(page: str, script: str, folder: Path) -> tuple[str, int]:
    """The document after it was opened without network and `script` has run in it, and milliseconds until ready."""
    file = folder / "page.html"
    file.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    run = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1500,1000",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}",
    ]  # fmt: skip
    shown = subprocess.run(
        [*run, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    ready = re.search(r'data-ready="(\d+)"', shown)
    assert ready is not None, f"the page's script did not finish: {shown[-2000:]}"
    return shown, int(ready[1])
