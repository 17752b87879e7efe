"""The status page's files, as the package brings them, and what a browser may do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "page"
#: By path in the address. The list is closed: what else may lie in the folder is not served.
PATHS: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
STATUS_PATH: Final = "/status.json"
# Its own script, style, picture and status; nothing inline, nothing from elsewhere, no frames around it.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def read_page_files() -> dict[str, tuple[bytes, str]]:
    """Content and type of every file by its path."""
    return {path: ((FOLDER / name).read_bytes(), kind) for path, (name, kind) in PATHS.items()}
