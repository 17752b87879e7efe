"""Every error of the project.

    PipelineError
      ConfigError                    the user's file, variable or flag; exit code 2
      SourceError                    a --camera that can never work (bad syntax, unknown kind); exit code 2
      BundleError
        BundleFormatError            not a bundle, or damaged
        BundleMismatchError          hash, id or classifier differ from what was asked for
        BundleSignatureError         nobody that this node trusts has signed it
        TableMismatchError           symbols and tables do not belong together
      BitstreamError                 one frame's bytes are not to be trusted
        TruncatedBitstreamError
        CorruptBitstreamError
      WireError                      the peer's message is not to be trusted
        WireFormatError
        WireVersionError
        WireLimitError
      SessionError
        LocalSessionError            we broke the protocol
        RemoteSessionError           the peer did
      LedgerError                    our own bug: stop loudly
      SecurityError                  the link is no longer protected: stop
      SpoolError
        SpoolRecordError             a record on the disk is damaged
        SpoolFullError               the disk, or the room given to the spool, is used up
      CaptureError                   a source failed now and may come back
      WorkerLostError                a worker process died or hung
      TrainingError                  recipe, pictures or checkpoint unfit
      EvaluationError                nothing to measure, or labels unfit

A dropped frame is an outcome (`pipeline.ledger.Outcome`), not an error.
"""

from __future__ import annotations

from pathlib import Path


class PipelineError(Exception):
    """Base of all errors raised on purpose; its text is one line that says what to do."""


class ConfigError(PipelineError):
    """A configuration value is wrong.

    Attributes:
        source: file, "environment" or "command line" that holds the value.
        key: dotted key, or "" when the file as a whole is unreadable.
    """

    def __init__(self, source: str | Path, key: str, problem: str) -> None:
        self.source = str(source)
        self.key = key
        self.problem = problem
        where = f"{self.source}: {key}" if key else self.source
        super().__init__(f"{where}: {problem}")


class SourceError(PipelineError):
    """A camera argument can never work, however often it is tried."""


class BundleError(PipelineError):
    """A bundle cannot be used."""


class BundleFormatError(BundleError):
    """A bundle is malformed or damaged."""


class BundleMismatchError(BundleError):
    """A bundle is sound but not the one that was asked for."""


class BundleSignatureError(BundleError):
    """A bundle came over the net and nobody trusted has signed it."""


class TableMismatchError(BundleError):
    """Symbols and tables do not belong together."""


class BitstreamError(PipelineError):
    """The bytes of one frame are not to be trusted."""


class TruncatedBitstreamError(BitstreamError):
    """The bitstream ends before its content does."""


class CorruptBitstreamError(BitstreamError):
    """The bitstream does not decode to what was encoded."""


class WireError(PipelineError):
    """A peer's message is not to be trusted."""


class WireFormatError(WireError):
    """The message is malformed."""


class WireVersionError(WireError):
    """The peer speaks another major version.

    Attributes:
        major: the version byte that was received.
    """

    def __init__(self, major: int, expected: int) -> None:
        self.major = major
        super().__init__(f"peer speaks wire version {major}, this side {expected}: update the older one")


class WireLimitError(WireError):
    """The message exceeds a limit."""


class SessionError(PipelineError):
    """The session's protocol was broken."""


class LocalSessionError(SessionError):
    """This side broke the protocol: a bug of ours."""


class RemoteSessionError(SessionError):
    """The peer broke the protocol."""


class LedgerError(PipelineError):
    """A frame was closed twice or never opened: a bug of ours."""


class SecurityError(PipelineError):
    """What protects the link cannot start or has failed: the program must not go on without it."""


class SpoolError(PipelineError):
    """The node's spool cannot do what was asked."""


class SpoolRecordError(SpoolError):
    """A record of the spool is damaged or cut off."""


class SpoolFullError(SpoolError):
    """A frame finds no place in the spool."""


class CaptureError(PipelineError):
    """A source cannot be read now; it may come back.

    Attributes:
        reason: one of open_failed, read_timeout, end_of_stream, bad_frame, crashed.
    """

    def __init__(self, reason: str, text: str) -> None:
        self.reason = reason
        super().__init__(text)


class WorkerLostError(PipelineError):
    """A worker process died or did not answer in time."""


class TrainingError(PipelineError):
    """A recipe, data folder or checkpoint is unfit for training."""


class EvaluationError(PipelineError):
    """There is nothing to measure, or pictures and labels do not fit."""
