"""Name, version and revision of the installed distribution."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Final

DISTRIBUTION: Final = "edge-cloud-rac"
PACKAGE: Final = Path(__file__).parent
#: Whoever builds an image from a checkout puts the commit there.
REVISION_FILE: Final = "revision.txt"

_COMMIT: Final = re.compile("[0-9a-f]{7,64}")


def version() -> str:
    """Version of the installed distribution."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "not installed"


def revision(package: Path = PACKAGE) -> str:
    """First 12 digits of the commit that this code was taken from; empty where nobody wrote it down."""
    for find in (_written, _checked_out):
        try:
            found = _COMMIT.fullmatch(find(package))
        except OSError:
            continue
        if found is not None:
            return found[0][:12]
    return ""


def _written(package: Path) -> str:
    return (package / REVISION_FILE).read_text(encoding="utf-8").strip()


def _checked_out(package: Path) -> str:
    """The commit of a git checkout, from its files: git itself may be missing."""
    folder = package.parent / ".git"
    if folder.is_file():  # a second working tree names its own folder, which names the first one's
        folder = Path(folder.read_text(encoding="utf-8").strip().removeprefix("gitdir: "))
    head = (folder / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    common = folder / "commondir"
    shared = folder / common.read_text(encoding="utf-8").strip() if common.exists() else folder
    if (shared / name).exists():
        return (shared / name).read_text(encoding="utf-8").strip()
    packed = (shared / "packed-refs").read_text(encoding="utf-8")
    found = re.search(rf"^([0-9a-f]+) {re.escape(name)}$", packed, re.MULTILINE)
    return found[1] if found else ""
