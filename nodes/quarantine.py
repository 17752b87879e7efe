"""Bitstreams of frames that broke workers, kept for whoever looks for the cause: few, private, and no pictures.

A file holds one bitstream as it came, without its lossless reference, and is named for the hash of its bytes, so that
a frame that comes again is kept once.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from nodes.cloud import AnsweredFrame, AnswerWatcher
from pipeline.attempts import frame_digest
from pipeline.ledger import Outcome

SUFFIX = ".bitstream"

logger = logging.getLogger("rac.cloud")


class Quarantine(AnswerWatcher):
    """A watcher of the front's loop that keeps the newest poisonous bitstreams in a folder of mode 0700."""

    def __init__(self, folder: Path, capacity: int) -> None:
        """Set up; the folder is made with its first file.

        Args:
            capacity: files at most; the oldest goes when one more comes. 0: none is kept.
        """
        self._folder, self._capacity = folder, capacity

    def answered(self, answered: AnsweredFrame) -> None:
        # What the worker did counts, also where the node was gone when the answer was ready.
        if answered.answer.outcome is not Outcome.POISON or self._capacity == 0:
            return
        frame = answered.frame
        bitstream = frame.frame.bitstream
        path = self._folder / f"{frame_digest(bitstream, None).hex()[:32]}{SUFFIX}"
        facts = {"node": frame.node, "camera": frame.camera, "sequence": frame.frame.sequence}
        try:
            if self._keep(path, bitstream):
                logger.warning(
                    "poisonous frame %d kept as %s", frame.frame.sequence, path, extra={"event": "poison_kept", **facts}
                )
        except OSError as error:
            logger.warning("poisonous frame not kept: %s: %s", self._folder, error.strerror, extra=facts)

    def _keep(self, path: Path, bitstream: bytes) -> bool:
        """Write a file; False when it is there already."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)  # whatever the umask, and whoever made it
        kept = sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime_ns)
        if path in kept:
            return False
        for oldest in kept[: max(0, len(kept) - self._capacity + 1)]:
            oldest.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(bitstream)
        return True
