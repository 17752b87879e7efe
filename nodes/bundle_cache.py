"""Bundles that a node fetched, in the cache folder: whole ones only, and which of them proved itself last.

bundles/<id>/      the node's part of one bundle
bundles/current    id of the one that works
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.bundle import Bundle, load_bundle
from pipeline.bundle_signature import check_signature
from pipeline.errors import BundleError, BundleMismatchError

_ID = re.compile("[0-9a-f]{64}")

logger = logging.getLogger("rac.bundles")


class BundleCache:
    """The fetched bundles of all nodes of this user.

    Args:
        root: the cache folder.
        trusted: public keys one of which must have signed a bundle; none: nothing is asked for.
    """

    def __init__(self, root: Path, trusted: Sequence[bytes] = ()) -> None:
        self._folder = root / "bundles"
        self._trusted = tuple(trusted)

    def load(self, bundle_id: bytes) -> Bundle | None:
        """A bundle, every byte verified; None when it is not here or damaged."""
        folder = self._folder / bundle_id.hex()
        if not folder.is_dir():
            return None
        try:
            bundle = load_bundle(str(folder), is_node_part=True)
            check_signature(bundle.bundle_id, bundle.signature, self._trusted)
        except BundleError as error:
            logger.warning("bundle in the cache cannot be used: %s", error)
            return None
        return bundle if bundle.bundle_id == bundle_id else None

    def store(self, bundle_id: bytes, files: Mapping[str, bytes]) -> Bundle:
        """Keep a bundle's files, all of them or none, and load it.

        Raises:
            BundleSignatureError: nobody that is trusted has signed it.
            BundleError: it cannot be used, or the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = Path(tempfile.mkdtemp(prefix="fetching-", dir=self._folder))
            try:
                return self._move_in(temporary, bundle_id, files)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            text = f"the bundle cannot be kept there ({error.strerror}): name another folder with RAC_CACHE"
            raise BundleError(f"{self._folder}: {text}") from error

    def current(self) -> Bundle | None:
        """The bundle that worked last; None when there is none."""
        try:
            text = (self._folder / "current").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return self.load(bytes.fromhex(text)) if _ID.fullmatch(text) else None

    def confirm(self, bundle_id: bytes, previous: bytes | None = None) -> None:
        """A bundle works: the next start begins with it. All others but the one before it go."""
        try:
            descriptor, name = tempfile.mkstemp(prefix="current-", dir=self._folder)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(bundle_id.hex() + "\n")
            Path(name).replace(self._folder / "current")
            kept = {bundle_id.hex(), "" if previous is None else previous.hex()}
            for folder in self._folder.iterdir():
                if _ID.fullmatch(folder.name) and folder.name not in kept:
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            logger.warning("%s: cannot be written: %s", self._folder, error.strerror)

    def _move_in(self, temporary: Path, bundle_id: bytes, files: Mapping[str, bytes]) -> Bundle:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        bundle = load_bundle(str(temporary), is_node_part=True)
        if bundle.bundle_id != bundle_id:
            raise BundleMismatchError(f"files of bundle {bundle.short_id}, not of {bundle_id.hex()[:12]}")
        check_signature(bundle_id, bundle.signature, self._trusted)
        target = self._folder / bundle_id.hex()
        if self.load(bundle_id) is None:  # another node of this user may have been faster
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
        return bundle
