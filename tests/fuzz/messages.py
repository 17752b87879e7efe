"""Mutated messages into a real cloud's ROUTER, beside a node that streams on.

Whatever comes, the cloud goes on: no worker is lost, no frame unaccounted for, its memory stays where it was, the node
beside notices nothing, and no sender gets a class for bytes that no encoder made.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

import msgpack
import zmq

from pipeline.bundle import Bundle, load_bundle
from pipeline.errors import WireError
from pipeline.wire import (
    BundleRequest,
    Bye,
    CameraEntry,
    Credit,
    FrameMessage,
    Hello,
    Message,
    Ping,
    Pong,
    Reject,
    Result,
    pack,
    parse,
)
from tests.e2e.balance import MIB, check_pages, longest_gap_s, resident_bytes
from tests.e2e.programs import Program
from tests.fuzz.frames import is_made_by_an_encoder, repair_checksum, sound_frames
from tests.fuzz.mutations import mutate

SENDERS = 8
"""Connections at a time; they send anything."""
POLITE_EVERY = 4
"""Every so many rounds one of them sends only frames that get as far as a worker; it has to wait for their answers."""
POLITE_FRAMES = 8
"""As many as there is credit for."""
MESSAGES_OF_A_CONNECTION = 120
"""More would only meet the limit of messages a second: who floods is not listened to."""
SETTLE_MS = 20
ANSWER_MS = 10_000
GROWTH_LIMIT_BYTES = 200 * MIB
LONGEST_GAP_S = 10.0


@dataclass
class MessageReport:
    """What a run found."""

    messages: int = 0
    connections: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    growth_bytes: int = 0
    longest_gap_s: float = 0.0
    violations: list[str] = field(default_factory=list)


class Sender:
    """One connection that says hello, or not, and then anything."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 200), (zmq.SNDTIMEO, 1_000), (zmq.SNDHWM, 1_000)):
            self.socket.setsockopt(option, value)
        self.socket.connect(endpoint)
        self.sent: dict[tuple[int, int], set[bytes]] = {}

    def send(self, parts: list[bytes]) -> None:
        try:
            message = parse(parts)
        except WireError:
            message = None
        if isinstance(message, FrameMessage):
            self.sent.setdefault((message.camera, message.sequence), set()).add(message.bitstream)
        try:
            self.socket.send_multipart(parts)
        except zmq.Again:  # cut off, and not connected again yet
            return

    def read(self, bundle: Bundle, report: MessageReport, enough: int | None = None) -> None:
        """Take answers, so many or all; a class for a bitstream that no encoder makes is a violation."""
        num_results = 0
        while num_results != enough and self.socket.poll(SETTLE_MS if enough is None else ANSWER_MS):
            try:
                message = parse(self.socket.recv_multipart())
            except WireError as error:
                report.violations.append(f"the cloud's own message is malformed: {error}")
                continue
            report.answers[_name_of(message)] += 1
            num_results += isinstance(message, Result)
            if enough is not None and isinstance(message, Reject):
                return  # not listened to: no result will come
            if isinstance(message, Result) and message.outcome == "ok":
                sent = self.sent.get((message.camera, message.sequence), set())
                if not any(is_made_by_an_encoder(bundle, bitstream) for bitstream in sent):
                    report.violations.append(f"a class for {sorted(bitstream.hex() for bitstream in sent)}")


def _name_of(message: Message) -> str:
    name = type(message).__name__
    return f"{name} {message.outcome}" if isinstance(message, Result) else name


def fuzz_messages(cloud: Program, node: Program, num_messages: int, seed: int = 0) -> MessageReport:
    """Send so many mutated messages to a running cloud while a node streams.

    Returns:
        Counts and violations; what a test looks at afterwards is the end of both programs.
    """
    random, report = Random(seed), MessageReport()
    bundle = load_bundle("default")
    sound = [bitstream for bitstream, _ in sound_frames(bundle, random, 20)]
    endpoint = cloud.get("start")[0]["endpoint"]
    began_s, before = time.monotonic(), resident_bytes(cloud.pid)
    restarts = _restarts(cloud)
    num_rounds = 0
    with zmq.Context() as context:
        while report.messages < num_messages:
            num_rounds += 1
            with _senders(context, endpoint) as senders:
                for number, sender in enumerate(senders):
                    report.connections += 1
                    node_name = f"fuzz{random.randrange(64)}"
                    hello = Hello(0, node_name, random.randbytes(16), (bundle.bundle_id,), (CameraEntry(0, "x"),))
                    if number == 0 and num_rounds % POLITE_EVERY == 1:
                        _be_polite(sender, hello, sound, bundle, random, report)
                        continue
                    if random.random() < 0.7:
                        sender.send(pack(hello))
                    for _ in range(MESSAGES_OF_A_CONNECTION):
                        sender.send(_hostile(_seed_message(hello, sound, random), random))
                        report.messages += 1
                for sender in senders:
                    sender.read(bundle, report)
            report.growth_bytes = max(report.growth_bytes, resident_bytes(cloud.pid) - before)
    node.wait_more("result", 10)
    report.longest_gap_s = longest_gap_s(node, began_s)
    check_pages([node], [cloud])
    if report.growth_bytes > GROWTH_LIMIT_BYTES:
        report.violations.append(f"the cloud grew by {report.growth_bytes / MIB:.0f} MiB")
    if report.longest_gap_s > LONGEST_GAP_S:
        report.violations.append(f"the node beside had no result for {report.longest_gap_s:.1f} s")
    if node.get("link", state="down"):
        report.violations.append("the node beside lost its session")
    if _restarts(cloud) != restarts or cloud.readiness()[0] != 200:
        report.violations.append(f"workers were lost: {_restarts(cloud)}, readiness {cloud.readiness()}")
    if "Traceback" in cloud.errors:
        report.violations.append("the cloud's log has a traceback")
    return report


def _be_polite(
    sender: Sender, hello: Hello, sound: list[bytes], bundle: Bundle, random: Random, report: MessageReport
) -> None:
    """Keep to the protocol and to the credit, and put the spoiled bytes where only a worker sees them."""
    sender.send(pack(hello))
    for first in range(0, MESSAGES_OF_A_CONNECTION, POLITE_FRAMES):
        for sequence in range(first, first + POLITE_FRAMES):
            frame = FrameMessage(0, sequence, sequence, 0, None, random.choice(sound))
            sender.send(_with_hostile_frame(pack(frame), random))
            report.messages += 1
        sender.read(bundle, report, POLITE_FRAMES)


def _restarts(cloud: Program) -> dict[str, float]:
    return {key[1]: value for key, value in cloud.metrics().items() if key[0] == "rac_cloud_worker_restarts_total"}


@contextmanager
def _senders(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> Iterator[list[Sender]]:
    senders = [Sender(context, endpoint) for _ in range(SENDERS)]
    try:
        yield senders
    finally:
        for sender in senders:
            sender.socket.close()


def _seed_message(hello: Hello, sound: list[bytes], random: Random) -> list[bytes]:
    """A message that a node may send, or one that only a cloud does."""
    frame = FrameMessage(
        camera=random.choice((0, 0, 0, 1)),
        sequence=random.randrange(1_000_000),
        captured_ns=random.randrange(2**62),
        age_us=random.choice((0, 1_000, 10_000_000)),
        label=random.choice((None, 5, 999)),
        bitstream=random.choice(sound),
        reference=random.choice((None, None, random.randbytes(100))),
        trace=random.choice((None, None, random.randbytes(24))),
    )
    kinds: list[Message] = [frame] * 12
    kinds += [hello, hello, Ping(random.randrange(2**63), 0), Pong(random.randrange(2**63), 0), Credit(5), Bye("x")]
    kinds.append(BundleRequest(hello.bundle_ids[0], random.choice((0, 2**20)), random.choice((1, 65_536))))
    return pack(random.choice(kinds))


def _hostile(parts: list[bytes], random: Random) -> list[bytes]:
    match random.randrange(8):
        case 0:
            return [mutate(parts[0], random)] + parts[1:]
        case 1:
            return [*parts, *[random.randbytes(random.randrange(200)) for _ in range(random.choice((1, 2, 9)))]]
        case 2:
            return [random.randbytes(random.choice((0, 1, 2, 17, 300)))]
        case 3:
            return [parts[0][:1] + b"\x91" * random.choice((10, 1_000, 30_000))]
        case 4:
            return [parts[0][:1] + msgpack.packb([random.choice((None, 2**64 - 1, "x" * 300, b"y", {}, -1))] * 8)]
        case _:
            return _with_hostile_frame(parts, random)


def _with_hostile_frame(parts: list[bytes], random: Random) -> list[bytes]:
    """A well-formed message whose bitstream is spoiled, with or without a checksum that fits; or spoiled itself."""
    message = parse(parts)
    if not isinstance(message, FrameMessage):
        return [mutate(part, random) for part in parts]
    bitstream = mutate(message.bitstream, random)
    if len(bitstream) >= 16 and random.random() < 0.5:
        bitstream = repair_checksum(message.bitstream[:12] + bitstream[12:])
    try:
        spoiled = FrameMessage(
            message.camera,
            message.sequence,
            message.captured_ns,
            message.age_us,
            message.label,
            bitstream,
            message.reference,
        )
        return pack(spoiled)
    except WireError:  # longer than a message may be, which this side would not send
        return parts
