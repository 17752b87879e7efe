"""Model delivery at the node's loop and at the first start: the real bundle in pieces, a cloud that may spoil them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nodes.bundle_bootstrap import Bootstrap
from nodes.bundle_cache import BundleCache
from nodes.bundle_fetcher import FIRST_RETRY_NS
from nodes.bundle_updates import BundleUpdates, PreparedBundle
from nodes.offers import BundleOffers
from pipeline.bundle import Bundle, find_bundle, load_bundle, read_contents, seal_bundle
from pipeline.bundle_delivery import cut_chunk, pack_node_part
from pipeline.bundle_trial import BundleChange, UpdateOutcome
from pipeline.errors import BundleError, BundleFormatError, BundleMismatchError, ConfigError, PipelineError
from pipeline.ledger import Outcome
from pipeline.rate_control import DepthController
from pipeline.session import NodeSession, NodeSettings
from pipeline.wire import (
    BUNDLE_DELIVERY,
    BundleRequest,
    CameraEntry,
    FrameMessage,
    Hello,
    Message,
    Ping,
    Pong,
    Result,
    TopClass,
    Welcome,
)
from tests.edge_bench import COST_NS, Bench
from tests.fakes import BUNDLE_ID, FakeClock, FakeReader, FakeUplink, S, Script

CONTENTS = read_contents(find_bundle("default"))
NEW = load_bundle("default")
PART = pack_node_part(CONTENTS)


@dataclass
class DeliveringCloud:
    """A cloud that offers the default bundle and answers frames.

    Attributes:
        decodes: bundles that it can decode.
        part: what it delivers.
        outcome: of frames, by bundle.
        sessions: HELLOs that opened one.
    """

    decodes: set[bytes]
    offer: bytes = NEW.bundle_id
    part: bytes = PART
    outcome: dict[bytes, Outcome] = field(default_factory=dict)
    sessions: list[Hello] = field(default_factory=list)
    requests: list[BundleRequest] = field(default_factory=list)
    bundle_id: bytes = b""

    def welcome(self) -> Welcome:
        can_decode = self.bundle_id in self.sessions[-1].bundle_ids
        return Welcome(
            minor=1,
            session_id=len(self.sessions).to_bytes(8, "little"),
            bundle_id=self.bundle_id,
            credit=8 if can_decode else 0,
            max_message_bytes=256 * 1024,
            heartbeat_ms=2000,
            peer_timeout_ms=6000,
            capabilities=(BUNDLE_DELIVERY,),
            offer=self.offer,
        )

    def __call__(self, message: Message) -> Sequence[Message]:
        match message:
            case Hello():
                self.sessions.append(message)
                self.bundle_id = next((each for each in message.bundle_ids if each in self.decodes), self.offer)
                return [self.welcome()]
            case BundleRequest():
                self.requests.append(message)
                cut = cut_chunk(self.part, message)
                return [] if cut is None else [cut]
            case Ping():
                return [Pong(message.token, message.sent_ns)]
            case FrameMessage():
                outcome = self.outcome.get(self.bundle_id, Outcome.OK)
                classes = (TopClass(967, "espresso", 0.75),) if outcome is Outcome.OK else ()
                return [
                    Result(message.camera, message.sequence, message.captured_ns, outcome, classes=classes, credit=1)
                ]
            case _:
                return []


class DeliveryBench(Bench):
    """A node that runs what its cloud offers; it begins with the fakes' bundle."""

    def __init__(self, cloud: DeliveringCloud, cache: Path, **options: Any) -> None:
        super().__init__(FakeReader("door"), **options)
        self.delivering = cloud
        self.uplink.peer = cloud
        hello = Hello(1, "box", bytes(16), (BUNDLE_ID,), (CameraEntry(0, "door"),), (BUNDLE_DELIVERY,))
        self.node.session = NodeSession(NodeSettings(hello, ("tcp://127.0.0.1:1",)), lambda: 0.0)
        self.refusal: PipelineError | None = None
        self.used: list[bytes] = []
        self.cache = BundleCache(cache)
        self.updates = BundleUpdates(
            self.node.session, hello, self.cache, self.held(BUNDLE_ID).bundle, self.prepare, self.use, self.note
        )
        self.updates.started(self.held(BUNDLE_ID))
        self.node.companions.append(self.updates)
        self.changes: list[BundleChange] = []

    def held(self, bundle_id: bytes) -> PreparedBundle:
        bundle: Any = SimpleNamespace(bundle_id=bundle_id, short_id=bundle_id.hex()[:12])
        encoder: Any = self.encoder
        return PreparedBundle(bundle, encoder, 48, DepthController(COST_NS, self.budget_ns))

    def prepare(self, bundle: Bundle) -> PreparedBundle:
        if self.refusal is not None:
            raise self.refusal
        return self.held(bundle.bundle_id)

    def use(self, prepared: PreparedBundle) -> None:
        self.used.append(prepared.bundle.bundle_id)
        self.node.use(prepared.encoder, prepared.level16, prepared.controller)

    def note(self, change: BundleChange) -> None:
        self.changes.append(change)

    def outcomes_of_changes(self) -> list[UpdateOutcome]:
        return [change.outcome for change in self.changes]


@pytest.fixture
def both() -> DeliveringCloud:
    return DeliveringCloud({BUNDLE_ID, NEW.bundle_id})


TURNS = 60


def test_offered_bundle_is_fetched_tried_and_kept(both: DeliveringCloud, tmp_path: Path) -> None:
    bench = DeliveryBench(both, tmp_path)
    bench.run(TURNS, bench.give(), 2)
    assert bench.used == [NEW.bundle_id]
    assert [hello.bundle_ids for hello in both.sessions] == [(BUNDLE_ID,), (NEW.bundle_id, BUNDLE_ID)]
    assert bench.outcomes_of_changes() == [UpdateOutcome.OK]
    current = bench.cache.current()
    assert current is not None
    assert current.bundle_id == NEW.bundle_id


def test_frames_go_on_while_the_bundle_comes_and_none_is_lost_by_the_change(
    both: DeliveringCloud, tmp_path: Path
) -> None:
    bench = DeliveryBench(both, tmp_path)
    bench.run(*[step for _ in range(TURNS) for step in (bench.give_if_asked(), 1)])
    total = bench.node.ledger.snapshot().total
    assert set(total.dropped) <= {"link_down", "no_credit"}
    assert sum(total.dropped.values()) <= 2
    assert total.results > TURNS // 2
    assert bench.outcomes_of_changes() == [UpdateOutcome.OK]


def test_change_waits_for_what_is_on_the_way_but_not_for_ever(both: DeliveringCloud, tmp_path: Path) -> None:
    bench = DeliveryBench(both, tmp_path)
    answer = both.__call__

    def hold_back(message: Message) -> Sequence[Message]:
        return [] if isinstance(message, FrameMessage) else answer(message)

    def stop_answering() -> None:
        bench.uplink.peer = hold_back

    seen: list[bytes] = []
    bench.run(stop_answering, bench.give(), TURNS, lambda: seen.extend(bench.used), bench.wait(3 * S), 3)
    assert seen == []
    assert bench.used == [NEW.bundle_id]
    assert bench.dropped() == {"link_down": 1, "lost_in_link": 1}


def test_bundle_that_does_not_decode_is_rolled_back(both: DeliveringCloud, tmp_path: Path) -> None:
    both.outcome[NEW.bundle_id] = Outcome.CORRUPT
    bench = DeliveryBench(both, tmp_path)
    bench.run(TURNS, *[step for _ in range(5) for step in (bench.give_if_asked(), 2)], 4, bench.give(), 2)
    assert bench.used == [NEW.bundle_id, BUNDLE_ID]
    assert bench.outcomes_of_changes() == [UpdateOutcome.ROLLED_BACK]
    assert both.sessions[-1].bundle_ids[0] == BUNDLE_ID
    assert bench.cache.current() is None
    # The same offer is not tried again.
    assert len(both.sessions) == 3
    assert bench.node.ledger.snapshot().total.results > 0


@pytest.mark.parametrize("refusal", [BundleFormatError("graph cannot be loaded"), ConfigError("x", "y", "z")])
def test_bundle_that_cannot_run_here_changes_nothing(
    both: DeliveringCloud, tmp_path: Path, refusal: PipelineError
) -> None:
    bench = DeliveryBench(both, tmp_path)
    bench.refusal = refusal
    bench.run(TURNS, bench.give(), 2)
    assert bench.used == []
    assert bench.outcomes_of_changes() == [UpdateOutcome.ERROR]
    assert len(both.sessions) == 1


def test_corrupt_piece_costs_the_delivery_and_the_next_one_is_right(both: DeliveringCloud, tmp_path: Path) -> None:
    damaged = bytearray(PART)
    damaged[len(PART) // 2] ^= 1
    both.part = bytes(damaged)
    bench = DeliveryBench(both, tmp_path)

    def repair() -> None:
        both.part = PART

    def no_trace() -> None:
        assert not [path for path in (tmp_path / "bundles").glob("*") if path.is_dir()]

    bench.run(TURNS, no_trace, repair, bench.wait(FIRST_RETRY_NS), TURNS, bench.give(), 2)
    assert bench.outcomes_of_changes() == [UpdateOutcome.BAD_HASH, UpdateOutcome.OK]
    assert bench.used == [NEW.bundle_id]


def test_other_offer_takes_the_place_of_the_first(both: DeliveringCloud, tmp_path: Path) -> None:
    """Told while the first one is still on its way."""
    wanted = NEW.bundle_id
    both.offer = bytes(32)
    both.part = b""
    bench = DeliveryBench(both, tmp_path)

    def change_mind() -> None:
        both.offer, both.part = wanted, PART
        bench.uplink.deliver(both.welcome())

    bench.run(3, change_mind, TURNS, bench.give(), 2)
    assert bench.used == [wanted]
    assert {request.bundle_id for request in both.requests} == {bytes(32), wanted}


def test_node_whose_bundle_the_cloud_cannot_decode_sends_nothing_until_it_has_the_offer(tmp_path: Path) -> None:
    cloud = DeliveringCloud({NEW.bundle_id})
    bench, needs = DeliveryBench(cloud, tmp_path), []
    bench.run(
        lambda: needs.append(bench.node.session.needs_bundle), lambda: bench.readers[0].miss(3), TURNS, bench.give(), 2
    )
    assert needs == [True]
    assert bench.used == [NEW.bundle_id]
    assert bench.node.ledger.snapshot().total.results == 1


def make_bootstrap(uplink: FakeUplink, clock: FakeClock, cache: BundleCache) -> tuple[Bootstrap, list[BundleChange]]:
    hello = Hello(1, "box", bytes(16), (), (CameraEntry(0, "door"),), (BUNDLE_DELIVERY,))
    session = NodeSession(NodeSettings(hello, ("tcp://127.0.0.1:1",)), lambda: 0.0)
    changes: list[BundleChange] = []
    made: Any = uplink
    return Bootstrap(session, made, cache, changes.append, lambda lost: None, clock), changes


def run_bootstrap(bootstrap: Bootstrap, *steps: Callable[[], object] | int) -> Bundle | None:
    script = Script(*steps)
    try:
        return bootstrap.run(script, script.fd)
    finally:
        script.close()


def test_first_start_with_an_empty_cache(tmp_path: Path) -> None:
    cloud, cache = DeliveringCloud({NEW.bundle_id}), BundleCache(tmp_path)
    bootstrap, _ = make_bootstrap(FakeUplink(cloud), FakeClock(), cache)
    bundle = run_bootstrap(bootstrap, TURNS)
    assert bundle is not None
    assert bundle.bundle_id == NEW.bundle_id
    # The second start finds it there and asks for no piece.
    cloud.requests.clear()
    again, _ = make_bootstrap(FakeUplink(cloud), FakeClock(), cache)
    assert run_bootstrap(again, TURNS) is not None
    assert cloud.requests == []


def test_first_start_with_a_corrupt_piece_tries_again(tmp_path: Path) -> None:
    cloud, clock = DeliveringCloud({NEW.bundle_id}), FakeClock()
    damaged = bytearray(PART)
    damaged[-9] ^= 1
    cloud.part = bytes(damaged)
    bootstrap, changes = make_bootstrap(FakeUplink(cloud), clock, BundleCache(tmp_path))

    def repair() -> None:
        cloud.part = PART
        clock.advance(FIRST_RETRY_NS)

    bundle = run_bootstrap(bootstrap, TURNS, repair, TURNS)
    assert bundle is not None
    assert [change.outcome for change in changes] == [UpdateOutcome.BAD_HASH]


def test_first_start_that_is_stopped_has_no_bundle(tmp_path: Path) -> None:
    bootstrap, _ = make_bootstrap(FakeUplink(None), FakeClock(), BundleCache(tmp_path))
    assert run_bootstrap(bootstrap, 3) is None


class TestCache:
    """The cache folder."""

    files = {name: content for name, content in CONTENTS.items() if name != "decoder.safetensors"}

    def test_bundle_is_there_whole_or_not_at_all(self, tmp_path: Path) -> None:
        cache = BundleCache(tmp_path)
        assert cache.load(NEW.bundle_id) is None
        with pytest.raises(BundleMismatchError):
            cache.store(bytes(32), self.files)
        with pytest.raises(BundleError):
            cache.store(NEW.bundle_id, {**self.files, "encoder-0.onnx": b"x"})
        assert list((tmp_path / "bundles").iterdir()) == []
        assert cache.store(NEW.bundle_id, self.files).bundle_id == NEW.bundle_id
        assert cache.load(NEW.bundle_id) is not None

    def test_damaged_bundle_is_replaced(self, tmp_path: Path) -> None:
        cache = BundleCache(tmp_path)
        cache.store(NEW.bundle_id, self.files)
        cache.confirm(NEW.bundle_id)
        (tmp_path / "bundles" / NEW.bundle_id.hex() / "tables.npz").write_bytes(b"")
        assert cache.load(NEW.bundle_id) is None
        assert cache.current() is None
        cache.store(NEW.bundle_id, self.files)
        assert cache.current() is not None

    def test_only_the_working_one_and_the_one_before_stay(self, tmp_path: Path) -> None:
        cache, ids = BundleCache(tmp_path), []
        for name in ("a", "b", "c"):
            made = tmp_path / name
            seal_bundle(made, NEW.manifest.model_copy(update={"name": name}), NEW.files)
            contents = read_contents(made)
            ids.append(load_bundle(str(made)).bundle_id)
            cache.store(ids[-1], contents)
            cache.confirm(ids[-1], ids[-2] if len(ids) > 1 else None)
        assert [cache.load(each) is not None for each in ids] == [False, True, True]
        current = cache.current()
        assert current is not None
        assert current.manifest.name == "c"

    @pytest.mark.parametrize("text", ["", "../../etc", "zz" * 32, "ab" * 32])
    def test_word_of_the_current_one_is_not_believed_blindly(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "bundles").mkdir()
        (tmp_path / "bundles" / "current").write_text(text)
        assert BundleCache(tmp_path).current() is None

    def test_folder_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(BundleError, match="RAC_CACHE"):
            BundleCache(tmp_path / "file").store(NEW.bundle_id, self.files)


class TestOffers:
    """What a cloud tells its nodes to run."""

    ids = {"old": bytes(32), "new": NEW.bundle_id}

    def make(self, answers: list[str | ConfigError]) -> tuple[BundleOffers, list[bytes]]:
        self.reloads = 0
        shown: list[bytes] = []

        def read_name() -> str:
            answer = answers.pop(0)
            if isinstance(answer, ConfigError):
                raise answer
            return answer

        made = BundleOffers({NEW.bundle_id: PART}, self.ids, "old", read_name, lambda: self.reloads, shown.append)
        return made, shown

    def test_offer_is_read_again_at_every_hangup_and_only_then(self) -> None:
        offers, shown = self.make(["new", "old"])
        assert offers.current() == bytes(32)
        for expected in (NEW.bundle_id, bytes(32)):
            self.reloads += 1
            assert [offers.current(), offers.current()] == [expected, expected]
        assert shown == [bytes(32), NEW.bundle_id, bytes(32)]

    @pytest.mark.parametrize("answer", ["nowhere", ConfigError("cloud.yaml", "offer", "is no text")])
    def test_offer_that_cannot_be_stays_as_it_is(
        self, answer: str | ConfigError, caplog: pytest.LogCaptureFixture
    ) -> None:
        offers, _ = self.make([answer])
        self.reloads += 1
        assert offers.current() == bytes(32)
        assert "stays as it is" in caplog.text

    def test_pieces_of_served_bundles_only(self) -> None:
        offers, _ = self.make([])
        found = offers.chunk(BundleRequest(NEW.bundle_id, 0, 100))
        assert found is not None
        assert found.chunk == PART[:100]
        assert offers.chunk(BundleRequest(bytes(range(32)), 0, 100)) is None


def test_hello_names_older_bundles_behind_the_one_in_use(both: DeliveringCloud, tmp_path: Path) -> None:
    """So that frames in the spool that were coded with them find their decoder."""
    bench = DeliveryBench(both, tmp_path)
    bench.run(TURNS, bench.give(), 1)
    assert both.sessions[-1] == replace(both.sessions[0], bundle_ids=(NEW.bundle_id, BUNDLE_ID))
