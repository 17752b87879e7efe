"""Every configuration key of node and cloud, once: default, unit, limits, meaning, what is traded for what.

The models are the table that everything else is made from: `pipeline.config_files` loads files, environment
and flags into them, `pipeline.config_sample` writes the sample files from the descriptions below, so a key
cannot lack its comment. A name ends in its unit where it has one (`_s`, `_ms`, `_bytes`, fps).

Values are checked here as far as that needs no look at the machine: whether a camera's source can work is for
`nodes.sources` to say, whether a bundle has a depth for `pipeline.bundle`. What several sections must agree on
is checked by `find_conflict`, which `load_config` calls.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from pipeline.config_base import (
    MAX_SECONDS,
    NAME_PATTERN,
    FramesPerSecond,
    Seconds,
    Section,
    Share,
    check_endpoint,
    check_order,
    leaves_machine,
)
from pipeline.config_security import (
    CloudMetricsSection,
    CloudSecuritySection,
    Conflict,
    LimitsSection,
    MetricsSection,
    NodeSecuritySection,
    find_cloud_conflict,
    find_node_conflict,
)

Fit = Literal["crop", "squash", "evaluation"]
LogLevel = Literal["debug", "info", "warning", "error"]

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5570"
# Value of codec.bundle: what the cloud offers.
AUTO_BUNDLE: Final = "auto"
# A lossless reference of 224 x 224 x 3 bytes with zlib's overhead is the largest thing that a frame carries.
MIN_MESSAGE_BYTES: Final = 163_840


class CameraConfig(Section):
    """One camera. In a list of cameras, plain text (NAME=SOURCE or SOURCE) is one without more keys."""

    source: str = Field(
        min_length=1,
        description="Device index or path, video file, folder of pictures, rtsp:// or http:// URL, or test:.",
    )
    name: str | None = Field(
        None, pattern=NAME_PATTERN, description="How results and metrics call it; null: made from the source."
    )
    fps: FramesPerSecond | Literal["max"] | None = Field(
        None, description="As capture.fps, for this camera; null: as there."
    )
    loop: bool | None = Field(None, description="As capture.loop, for this camera; null: as there.")
    fit: Fit | None = Field(None, description="As capture.fit, for this camera; null: as there.")
    roi: tuple[Share, Share, Share, Share] | None = Field(
        None,
        description="Region of interest [left, top, width, height] in shares of the picture, not pixels, so"
        " that it survives a change of resolution; null: the whole picture.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str | int) and not isinstance(value, bool) else value

    @field_validator("roi")
    @classmethod
    def _check_roi(cls, roi: tuple[float, float, float, float] | None) -> tuple[float, float, float, float] | None:
        if roi is not None:
            left, top, width, height = roi
            # The slack lets 0.1 + 0.9 pass.
            if not (width > 0 and height > 0 and left + width <= 1 + 1e-9 and top + height <= 1 + 1e-9):
                raise ValueError("must lie inside the picture: [left, top, width, height] in shares from 0 to 1")
        return roi

    @property
    def argument(self) -> str:
        """The camera as `--camera` takes it: NAME=SOURCE, or as it was written."""
        return self.source if self.name is None else f"{self.name}={self.source}"


class EndpointSection(Section):
    endpoints: tuple[str, ...] = Field(
        (DEFAULT_ENDPOINT,),
        min_length=1,
        description="Where the cloud listens, tcp://HOST:PORT or ipc://PATH; the first is used, the next"
        " ones when it fails. Beyond this machine the node needs keys: see security.",
    )

    @field_validator("endpoints")
    @classmethod
    def _check_endpoints(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        for endpoint in endpoints:
            check_endpoint(endpoint)
        return endpoints


class NodeLinkSection(Section):
    result_timeout_s: Seconds = Field(
        20.0,
        description="How long a sent frame waits for its result before it counts as expired. Shorter frees"
        " its place sooner; longer forgives a cloud whose workers hang: with its defaults it needs up to 19 s"
        " to try such a frame three times.",
    )
    reconnect_min_s: Seconds = Field(0.5, description="Longest wait before the first new try to connect.")
    reconnect_max_s: Seconds = Field(
        30.0,
        description="Longest wait between tries: it doubles from reconnect_min_s up to here, and each is"
        " drawn at random below, so that a fleet does not come back in step.",
    )

    return_s: Seconds = Field(
        30.0,
        description="With several endpoints: how often a better one is looked at while a worse one is used. One that is"
        " there again is gone back to when nothing is on the way.",
    )

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        check_order("reconnect_min_s", self.reconnect_min_s, "reconnect_max_s", self.reconnect_max_s)
        return self


class CodecSection(Section):
    bundle: str = Field(
        "default",
        min_length=1,
        description="Bundle of encoder and tables: a name that ships with the package, a folder or a zip."
        " The cloud must have the same. auto: the one that the cloud offers, fetched and kept in the cache folder.",
    )
    budget_ms: Annotated[float, Field(gt=0, le=10_000)] = Field(
        8.0,
        description="Time that a frame may take from camera array to bytes, in milliseconds, at `threads`."
        " More time means a deeper encoder: fewer bits, or better classes at the same bits.",
    )
    depth: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = Field(
        "auto",
        description="Encoder depth; auto: the deepest that fits budget_ms, following the machine's load. A"
        " number stays fixed whatever it costs.",
    )
    rate: Annotated[float, Field(ge=0, lt=16)] | Literal["auto", "best"] = Field(
        "auto",
        description="Rate level, in steps of 1/16: 0 spends the fewest bits, the bundle's highest level the"
        " most; auto: the bundle's default; best: its highest.",
    )
    threads: Annotated[int, Field(ge=1, le=64)] = Field(
        1,
        description="Threads of one encoder run. More shortens a frame's time on an idle machine and takes"
        " it from other work; one thread costs the least CPU time in total.",
    )
    when_over_budget: Literal["send", "drop"] = Field(
        "send",
        description="What happens to frames while not even the shallowest depth fits budget_ms: send counts"
        " an overrun, drop gives the frame up as over_budget.",
    )


class BundleSection(Section):
    trusted_keys: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...] = Field(
        (),
        max_length=16,
        description="Public keys, as rac bundle signer prints them, one of which must have signed a bundle that the"
        " cloud delivers. Needed for --bundle auto beyond this machine; on it, none is asked for unless one is given.",
    )


class CaptureSection(Section):
    fps: FramesPerSecond | Literal["max"] | None = Field(
        None,
        description="Frames a second; null: as a live source gives them, a file or folder at its own rate;"
        " max: a file or folder as fast as frames are taken. What a live source gives beyond it is dropped"
        " as rate_limit.",
    )
    loop: bool = Field(False, description="Whether files and folders start again at their end.")
    fit: Fit = Field(
        "crop",
        description="How a picture becomes the square view: crop takes the centre square, squash the whole"
        " picture out of shape, evaluation a slightly smaller centre square, as classifiers are usually"
        " measured.",
    )
    open_timeout_s: Seconds = Field(
        10.0, description="Longest that opening a source may take. RTSP takes over a second on a good day."
    )
    read_timeout_s: Seconds = Field(
        5.0,
        description="Longest that one picture may take before the source is closed and opened again. Too"
        " short a time cuts cameras off that send less often.",
    )


class SpoolSection(Section):
    folder: str | None = Field(
        None,
        min_length=1,
        description="Folder on the disk where coded frames of files and folders wait for their results; null:"
        " none. They are taken while there is no cloud too, and survive the node's end, so that the next start"
        " sends them. Live cameras keep their newest frame only, with a spool or without.",
    )
    mb: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        256, description="Room for the spool in megabytes; files and folders wait when it is used up."
    )


class AccuracySection(Section):
    reference_every: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0,
        description="Every so many frames of a camera the view travels losslessly beside the features, so"
        " that the cloud tells how often both agree; 0: never. One reference takes about 100 kB and a whole"
        " run of the classifier.",
    )


class LogSection(Section):
    level: LogLevel = Field("info", description="Least serious messages that are written.")
    format: Literal["text", "json"] = Field("text", description="Lines for people, or one JSON object a line.")


class TracingSection(Section):
    endpoint: str | None = Field(
        None,
        min_length=1,
        description="Where spans go, an OTLP address such as http://127.0.0.1:4318/v1/traces; null: nothing is traced."
        " Wants the extra [otel]; without it this is said once, and nothing is traced.",
    )


class NodeTracingSection(TracingSection):
    every: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        100,
        description="Every so many frames of a camera one is traced, from capture to result; the cloud goes by what"
        " the node chose. Frames that go through the spool are not.",
    )


class NodeConfig(Section):
    """Configuration of `rac-node`."""

    name: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,64}$", description="Name of this node; empty: the host's name.")
    cameras: tuple[CameraConfig, ...] = Field(
        (),
        max_length=256,
        description="The cameras: each NAME=SOURCE or SOURCE, or an object with the keys below. A node needs"
        " one, here or by --camera.",
    )
    cloud: EndpointSection = Field(default_factory=EndpointSection, description="The cloud that classifies.")
    security: NodeSecuritySection = Field(
        default_factory=NodeSecuritySection, description="Keys: who this node is, and which cloud it trusts."
    )
    link: NodeLinkSection = Field(default_factory=NodeLinkSection, description="The session with the cloud.")
    codec: CodecSection = Field(default_factory=CodecSection, description="What frames are coded with.")
    bundle: BundleSection = Field(default_factory=BundleSection, description="Whose bundles are trusted.")
    capture: CaptureSection = Field(default_factory=CaptureSection, description="How cameras are read.")
    spool: SpoolSection = Field(default_factory=SpoolSection, description="Frames on the disk until they are answered.")
    accuracy: AccuracySection = Field(default_factory=AccuracySection, description="What watches the classes.")
    metrics: MetricsSection = Field(default_factory=MetricsSection, description="Prometheus metrics and health.")
    log: LogSection = Field(default_factory=LogSection, description="Messages on standard error.")
    tracing: NodeTracingSection = Field(
        default_factory=NodeTracingSection, description="OpenTelemetry traces of sampled frames."
    )
    drain_s: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = Field(
        1.0, description="How long an ordered stop waits for results of frames that were sent."
    )

    def find_conflict(self) -> Conflict | None:
        """Keys of several sections that do not go together."""
        outside = [endpoint for endpoint in self.cloud.endpoints if leaves_machine(endpoint)]
        if self.codec.bundle == AUTO_BUNDLE and outside and not self.bundle.trusted_keys:
            problem = f"must name who signs the bundles that auto takes from {outside[0]}: see rac bundle sign"
            return Conflict("bundle.trusted_keys", problem)
        return find_node_conflict(self.cloud.endpoints, self.security, self.metrics)


class CloudLinkSection(Section):
    bind: str = Field(
        DEFAULT_ENDPOINT,
        description="Where nodes connect, tcp://HOST:PORT or ipc://PATH; port 0: any free one. Beyond this"
        " machine the cloud needs keys: see security.",
    )
    heartbeat_s: Seconds = Field(
        2.0, description="Time between two signs of life, for both sides: nodes are told at the handshake."
    )
    peer_timeout_s: Seconds = Field(
        6.0,
        description="Silence after which a node's session ends; above heartbeat_s, three times it or more.",
    )
    credit: Annotated[int, Field(ge=1, le=1024)] = Field(
        8,
        description="Frames that one node may have unanswered at first, and at least. Enough for the round trip"
        " over the time a frame takes, about doubled; more only adds delay.",
    )
    max_credit: Annotated[int, Field(ge=1, le=1024)] = Field(
        64,
        description="What that may grow to where the measured round trip is long and the node sends fast: twice"
        " what fills its link. Not above credit: it stays as it is.",
    )
    max_message_bytes: Annotated[int, Field(ge=MIN_MESSAGE_BYTES, le=16 * 2**20)] = Field(
        262_144,
        description="Largest message part that is read; a node that sends a larger one loses its connection."
        " A frame with a lossless reference must fit.",
    )
    max_sessions: Annotated[int, Field(ge=1, le=100_000)] = Field(
        256, description="Nodes connected at once; one more is refused."
    )

    @field_validator("bind")
    @classmethod
    def _check_bind(cls, bind: str) -> str:
        check_endpoint(bind, any_port=True)
        return bind

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        check_order("heartbeat_s", self.heartbeat_s, "peer_timeout_s", self.peer_timeout_s, equal=False)
        return self


class PoolSection(Section):
    workers: Annotated[int, Field(ge=1, le=1024)] = Field(
        2, description="Worker processes. More than cores slows every one of them down."
    )
    batch_frames: Annotated[int, Field(ge=1, le=256)] = Field(
        16,
        description="Frames of a full batch. Larger batches take less time a frame and more time each.",
    )
    batch_wait_ms: Annotated[float, Field(ge=0, le=10_000)] = Field(
        5.0,
        description="How long the first frame of a batch waits for company, in milliseconds. Longer fills"
        " batches and adds as much to every answer.",
    )
    queue_frames: Annotated[int, Field(ge=1, le=65_536)] = Field(
        256,
        description="Frames that wait for a worker at most; beyond it they are rejected. A longer queue only"
        " adds delay.",
    )
    max_age_s: Seconds = Field(
        5.0, description="Frames older than this when their batch is made are given up as stale."
    )
    batch_timeout_s: Seconds = Field(
        3.0,
        description="How long a worker may take for a batch before it counts as hung and is started again."
        " Too short a time kills workers that are only slow; three of these times and two starts of a worker"
        " should fit into the nodes' link.result_timeout_s, for a frame is tried three times at most.",
    )
    worker_memory_mb: Annotated[int, Field(ge=0, le=1_048_576)] = Field(
        2048,
        description="A worker with more memory than this is started anew between two batches; 0: none is. With"
        " one bundle it takes about 600.",
    )
    quarantine: str | None = Field(
        None,
        min_length=1,
        description="Folder for the bitstreams of frames that broke workers, for whoever looks for the cause;"
        " null: quarantine in the cache folder.",
    )
    quarantine_files: Annotated[int, Field(ge=0, le=10_000)] = Field(
        32, description="Bitstreams that are kept there at most, the newest; 0: none."
    )


class EngineSection(Section):
    name: Literal["auto", "openvino", "onnxruntime"] = Field(
        "auto", description="What runs decoder and classifier; auto: openvino where it is installed."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Numbers of the networks; bf16 takes half the time on CPUs that have it, changes some"
        " classes near a tie, and needs openvino.",
    )
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="Threads of one worker; 0: the cores divided by the workers."
    )

    @model_validator(mode="after")
    def _check_precision(self) -> Self:
        if self.precision == "bf16" and self.name == "onnxruntime":
            raise ValueError("precision bf16 needs name openvino, not onnxruntime")
        return self


class CloudConfig(Section):
    """Configuration of `rac-cloud`."""

    link: CloudLinkSection = Field(default_factory=CloudLinkSection, description="The sessions with nodes.")
    security: CloudSecuritySection = Field(
        default_factory=CloudSecuritySection, description="Keys: who this cloud is, and which nodes may connect."
    )
    limits: LimitsSection = Field(
        default_factory=LimitsSection, description="What one node may ask of the cloud before it is cut off."
    )
    pool: PoolSection = Field(default_factory=PoolSection, description="The workers and what waits for them.")
    engine: EngineSection = Field(default_factory=EngineSection, description="How workers compute.")
    bundles: tuple[str, ...] = Field(
        ("default",),
        min_length=1,
        max_length=16,
        description="Bundles that nodes may use: names that ship with the package, folders or zips. Each"
        " takes memory in every worker.",
    )
    offer: str | None = Field(
        None,
        min_length=1,
        description="The one of bundles that nodes with --bundle auto should run; null: the first. Read again on"
        " SIGHUP: nodes then fetch the new one while they stream.",
    )
    classifier_weights: str | None = Field(
        None,
        min_length=1,
        description="File with a classifier's state dict, such as ResNet-50's with torchvision's names. Bundles for"
        " another classifier do not ask it; null: what the package has, or what torchvision downloads.",
    )
    results: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="Where results go besides the node: `-` for standard output, jsonl:PATH for a file. A"
        " slow one drops results, never delays the stream.",
    )
    metrics: CloudMetricsSection = Field(
        default_factory=CloudMetricsSection, description="Prometheus metrics and health."
    )
    log: LogSection = Field(default_factory=LogSection, description="Messages on standard error.")
    tracing: TracingSection = Field(
        default_factory=TracingSection, description="OpenTelemetry traces of the frames that nodes sample."
    )
    drain_s: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = Field(
        1.5, description="How long an ordered stop goes on with frames that were accepted."
    )

    def find_conflict(self) -> Conflict | None:
        """Keys of several sections that do not go together."""
        return find_cloud_conflict(self.link.bind, self.security, self.metrics)

    @field_validator("results")
    @classmethod
    def _check_results(cls, results: tuple[str, ...]) -> tuple[str, ...]:
        for sink in results:
            if sink != "-" and not (sink.startswith("jsonl:") and len(sink) > len("jsonl:")):
                raise ValueError(f"{sink!r} is no sink: use - or jsonl:PATH")
        return results


def section_of(field_info: FieldInfo) -> type[Section] | None:
    """The section that a field holds; None for a key."""
    annotation: Any = field_info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def config_keys(model: type[Section]) -> dict[str, FieldInfo]:
    """Every dotted key of a model with its field, in the order of the sample file."""
    keys = {}
    for name, field_info in model.model_fields.items():
        section = section_of(field_info)
        if section is None:
            keys[name] = field_info
        else:
            keys |= {f"{name}.{key}": inner for key, inner in config_keys(section).items()}
    return keys
