"""A node of the tests: speaks the protocol with a cloud message by message, and does what no real node does."""

from __future__ import annotations

import os
import time

import numpy as np
import zmq

from pipeline.bitstream import Bitstream, pack_bitstream
from pipeline.bundle import load_bundle
from pipeline.entropy.rans import encode_symbols
from pipeline.wire import CameraEntry, FrameMessage, Hello, Ping, Pong, Result, Welcome, pack, parse
from tests.e2e.fragile import order
from tests.e2e.programs import PATIENCE_S, Program


class SoundPeer:
    """Speaks the protocol with a cloud, frame by frame, and sends what no encoder makes."""

    def __init__(self, cloud: Program) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(cloud.get("start")[0]["endpoint"])
        self._bundle = load_bundle("default")
        self._sequence = -1
        self.join()

    def join(self) -> None:
        """Begin a session; anew where the test took longer than a silent peer is kept."""
        hello = Hello(0, "stranger", os.urandom(16), (self._bundle.bundle_id,), (CameraEntry(0, "x"),))
        self.socket.send_multipart(pack(hello))
        self._wait_for(Welcome)

    def send(self, word: str, *, shade: int = 0) -> bytes:
        """Send a sound frame whose reference orders something; return its bitstream.

        Args:
            shade: makes other bytes.
        """
        depth, level16 = self._bundle.manifest.depths[0], self._bundle.default_level16
        symbols = np.zeros(self._bundle.manifest.latent_shape, np.int32)
        symbols[self._bundle.tables[depth, level16].coded, 0, :3] = shade
        words = encode_symbols(symbols, self._bundle.tables[depth, level16])
        bitstream = pack_bitstream(Bitstream(0, self._bundle.id8, depth, level16, words))
        self._sequence += 1
        self.socket.send_multipart(pack(FrameMessage(0, self._sequence, 0, 0, None, bitstream, order(word))))
        return bitstream

    def result(self) -> Result:
        """The next answer."""
        result = self._wait_for(Result)
        assert isinstance(result, Result)
        return result

    def close(self) -> None:
        self.socket.close()
        self.context.term()

    def _wait_for(self, kind: type) -> object:
        limit_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < limit_s:
            if not self.socket.poll(100):
                continue
            message = parse(self.socket.recv_multipart())
            if isinstance(message, Ping):
                self.socket.send_multipart(pack(Pong(message.token, message.sent_ns)))
            elif isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__} came")
