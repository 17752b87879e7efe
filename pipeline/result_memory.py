"""The cloud's memory of answers: a frame that is sent again gets the same RESULT without being computed
again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from pipeline.wire import Result, pack, parse

# A node sends again at most what was in flight or in its spool; the design promises this many for each
# camera.
RESULTS_PER_CAMERA = 1024
# For all cameras together, some 350 bytes each: 128 cameras in full, or 45 MB.
MAX_RESULTS = 131_072


@dataclass(frozen=True, slots=True)
class FrameIdentity:
    """Names one frame for good; `boot_id` is random at every start of the node."""

    node: str
    boot_id: bytes
    camera: str
    sequence: int


class ResultMemory:
    """The newest RESULTs of each camera, packed. Beyond the total, the camera goes that was silent the
    longest."""

    def __init__(self, per_camera: int = RESULTS_PER_CAMERA, in_all: int = MAX_RESULTS) -> None:
        self._per_camera = per_camera
        self._in_all = in_all
        self._num_results = 0
        self._cameras: OrderedDict[tuple[str, bytes, str], OrderedDict[int, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return self._num_results

    def add(self, identity: FrameIdentity, result: Result) -> None:
        """Keep the answer of a frame that has none yet."""
        key = (identity.node, identity.boot_id, identity.camera)
        results = self._cameras.setdefault(key, OrderedDict())
        self._cameras.move_to_end(key)
        self._num_results += identity.sequence not in results
        results[identity.sequence] = pack(result)[0]
        if len(results) > self._per_camera:
            results.popitem(last=False)
            self._num_results -= 1
        while self._num_results > self._in_all and len(self._cameras) > 1:
            self._num_results -= len(self._cameras.popitem(last=False)[1])

    def get(self, identity: FrameIdentity) -> Result | None:
        """The answer of this frame, as it was given; None if there is none or it is forgotten."""
        results = self._cameras.get((identity.node, identity.boot_id, identity.camera))
        packed = None if results is None else results.get(identity.sequence)
        if packed is None:
            return None
        result = parse([packed])
        assert isinstance(result, Result)
        return result
