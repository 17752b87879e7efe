"""The commands' arguments. Only argparse is imported: --help has to be there at once.

A flag that is a configuration key stands under `key:` and its dotted name, as the text that was given:
`pipeline.config_files` checks it with the same words as a file. A flag that is absent is absent.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from nodes.lifecycle import EXIT_USAGE

KEY_PREFIX: Final = "key:"
MIN_SIDE_PX: Final = 113  # what is missing to 224 is mirrored, once


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong, and the nearest right word, in one line."""

    def __init__(self, **options: Any) -> None:
        self.flags: list[str] = []
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse, with the flags remembered for suggestions."""
        action = super().add_argument(*names, **options)
        self.flags += action.option_strings
        return action

    def add_key(self, flag: str, key: str, **options: Any) -> None:
        """Add a flag that stands for a configuration key."""
        if "action" not in options or options["action"] == "append":
            options.setdefault("metavar", key.rpartition(".")[2].upper())
        self.add_argument(flag, dest=KEY_PREFIX + key, default=argparse.SUPPRESS, **options)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse; an unknown argument ends the program with code 2."""
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            known = getattr(arguments, "flags", self.flags)
            nearest = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else "; see --help"
            self.error(f"unknown argument {unknown[0]}{hint}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """End the program with code 2 and one line."""
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice is not None:
            words = re.findall(r"[\w-]+", choice[2])
            nearest = difflib.get_close_matches(choice[1], words, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(words)}"
            message = f"unknown {choice[1]!r}; {hint}"
        print(f"{self.prog}: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def config_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The configuration keys among the arguments, by dotted name."""
    return {
        name.removeprefix(KEY_PREFIX): value for name, value in vars(arguments).items() if name.startswith(KEY_PREFIX)
    }


def node_parser() -> OneLineParser:
    """Arguments of `rac-node`."""
    parser = OneLineParser(
        prog="rac-node",
        description="Edge node: camera frames to coded features, within a budget, and their classes back.",
        epilog="example:\n  rac-node --camera test: --budget-ms 8\n  rac-node --camera door=rtsp://HOST/stream",
    )
    parser.add_key(
        "--camera",
        "cameras",
        action="append",
        metavar="[NAME=]SOURCE",
        help="index, file, folder, labelled folder or CSV, rtsp:// or http:// URL, or test: (repeatable)",
    )
    parser.add_key("--cloud", "cloud.endpoints", action="append", metavar="tcp://HOST:PORT", help="repeatable")
    parser.add_key("--name", "name", help="name of this node; default: the host's; with keys, the key's")
    parser.add_key("--key", "security.key", metavar="FILE", help="this node's secret key: rac keys node NAME")
    parser.add_key(
        "--cloud-key",
        "security.cloud_keys",
        action="append",
        metavar="FILE_OR_KEY",
        help="public key of the cloud; one, or one for each --cloud",
    )
    parser.add_key(
        "--insecure", "security.insecure", action="store_true", help="send frames to other machines in the clear"
    )
    parser.add_key("--bundle", "codec.bundle", help="name, folder or zip of the bundle; auto: the cloud's")
    parser.add_key(
        "--trusted-key", "bundle.trusted_keys", action="append", metavar="KEY", help="who signs bundles for auto"
    )
    parser.add_key("--budget-ms", "codec.budget_ms", help="time from camera array to bytes for a frame")
    parser.add_key("--depth", "codec.depth", help="encoder depth, or auto: what fits the budget")
    parser.add_key("--rate", "codec.rate", help="rate level from 0 (fewest bits), auto or best")
    parser.add_key("--threads", "codec.threads", help="threads of the encoder")
    parser.add_key("--fps", "capture.fps", help="frames a second, or max: files as fast as it goes")
    parser.add_key("--loop", "capture.loop", action=argparse.BooleanOptionalAction, help="start files again")
    parser.add_key("--spool", "spool.folder", metavar="DIR", help="keep frames of files there until they are answered")
    parser.add_key("--spool-mb", "spool.mb", metavar="N", help="room for the spool in megabytes")
    parser.add_key(
        "--reference-every",
        "accuracy.reference_every",
        metavar="K",
        help="send every K-th view losslessly too",
    )
    _add_common(parser)
    return parser


def cloud_parser() -> OneLineParser:
    """Arguments of `rac-cloud`."""
    parser = OneLineParser(
        prog="rac-cloud",
        description="The cloud: takes coded features from many nodes, classifies them in batches, answers.",
        epilog="example:\n  rac-cloud --workers 4 --results jsonl:results.jsonl",
    )
    parser.add_key("--bind", "link.bind", metavar="tcp://HOST:PORT", help="where nodes connect")
    parser.add_key("--key", "security.key", metavar="FILE", help="this cloud's secret key: rac keys server")
    parser.add_key(
        "--allowed",
        "security.allowed",
        metavar="PATH",
        help="public keys of the nodes that may connect: a file or a folder; read again when it changes",
    )
    parser.add_key(
        "--insecure", "security.insecure", action="store_true", help="let other machines connect without keys"
    )
    parser.add_key("--workers", "pool.workers", help="worker processes")
    parser.add_key("--bundle", "bundles", action="append", help="bundle that nodes may use; may be repeated")
    parser.add_key("--offer", "offer", metavar="BUNDLE", help="the one that nodes with --bundle auto should run")
    parser.add_key("--engine", "engine.name", help="auto, openvino or onnxruntime")
    parser.add_key("--precision", "engine.precision", help="fp32 or bf16")
    parser.add_key("--classifier-weights", "classifier_weights", metavar="FILE", help="state dict of the classifier")
    parser.add_key("--results", "results", action="append", metavar="SINK", help="- or jsonl:PATH; may be repeated")
    _add_common(parser)
    return parser


def rac_parser() -> OneLineParser:
    """Arguments of `rac` with its sub-commands; `command` says which, `flags` what it knows."""
    parser = OneLineParser(prog="rac", description="Demonstrate, measure, train, export, inspect.")
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=OneLineParser)
    for name, command in SUBCOMMANDS.items():
        summary = command.summary
        sub = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        command.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print JSON, for machines")
        sub.set_defaults(flags=sub.flags)
    return parser


def _add_common(parser: OneLineParser) -> None:
    parser.add_key("--drain-seconds", "drain_s", help="longest that a stop waits for what was sent or accepted")
    parser.add_key("--metrics-port", "metrics.port", help="port of /metrics; default: the next free one")
    parser.add_key("--metrics-host", "metrics.host", help="address of /metrics; beyond this machine it wants a token")
    parser.add_key("--metrics-token", "metrics.token", help="what a scrape must carry; better as RAC_METRICS__TOKEN")
    parser.add_key("--metrics-token-file", "metrics.token_file", metavar="FILE", help="file with that token")
    parser.add_key("--log-level", "log.level", help="debug, info, warning or error")
    parser.add_key("--log-format", "log.format", help="text or json")
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the keys")
    parser.add_argument("--check-config", action="store_true", help="say whether the configuration is right")
    parser.add_argument("--sample-config", action="store_true", help="print a file with every key explained")
    parser.add_argument("--json", action="store_true", help="print JSON lines, for machines")
    parser.add_argument("--version", action="store_true", help="print the version and stop")


def _add_demo(parser: OneLineParser) -> None:
    parser.add_argument("--seconds", type=_positive, default=30.0, help="length, from the first results (30)")
    parser.add_argument("--cameras", type=_count, default=2, help="nodes, with one camera each (2)")
    parser.add_argument("--workers", type=_count, default=2, help="worker processes of the cloud (2)")
    parser.add_argument("--bundle", default="default", help="name, folder or zip of the bundle")
    parser.add_argument("--budget-ms", type=_positive, default=8.0, help="budget of a frame (8)")


def _add_eval(parser: OneLineParser) -> None:
    parser.add_argument("--bundle", default="default", help="name, folder or zip of the bundle")
    parser.add_argument("--data", required=True, metavar="FOLDER_OR_TAR", help="pictures")
    parser.add_argument("--labels", metavar="CSV", help="columns file and label; else sub-folders are classes")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N pictures")
    parser.add_argument("--baselines", action="store_true", help="measure picture codecs too")
    parser.add_argument("--engine", choices=("auto", "openvino", "onnxruntime"), default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    _add_weights(parser)
    parser.add_argument("--all", action="store_true", help="all systems compared, into --out; may download weights")
    parser.add_argument("--networks", metavar="FOLDER", help="with --all: what `rac sweep` made")
    parser.add_argument("--out", metavar="FOLDER", default="comparison", help="with --all: results (comparison)")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    parser.add_argument("--plot", metavar="FILE", help="draw rate against accuracy there")


def _add_train(parser: OneLineParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, such as configs/train/nested-lite0.yaml")
    parser.add_argument("--out", metavar="FOLDER", help="default: runs/ and the recipe's name")
    parser.add_argument("--minutes", type=_positive, help="length, instead of the recipe's")
    parser.add_argument("--pictures", type=_count, metavar="N", help="length in pictures seen, instead of the recipe's")
    parser.add_argument("--batch", type=_batch, metavar="N", help="pictures of a batch, instead of the recipe's")
    parser.add_argument(
        "--data", action="append", metavar="FOLDER", help="pictures, instead of the recipe's (repeatable)"
    )
    _add_weights(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--from", dest="warm_start", metavar="CHECKPOINT", help="begin with the weights of another run")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--threads", type=_count, help="default: every core")


def _add_sweep(parser: OneLineParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="YAML file, such as configs/train/sweeps/comparison-lite0.yaml")
    parser.add_argument("--out", metavar="FOLDER", help="default: runs/ and the plan's name")
    parser.add_argument("--only", action="append", default=[], metavar="NETWORK", help="no other; may be repeated")
    parser.add_argument("--list", action="store_true", help="say what is done and what is missing, and stop")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--threads", type=_count, help="default: every core")


def _add_export(parser: OneLineParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file that `rac train` wrote")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the bundle's folder")
    parser.add_argument("--name", default="default", help="the bundle's name")
    parser.add_argument("--measure", metavar="FOLDER_OR_TAR", help="pictures for the bundle's measured table")
    parser.add_argument("--labels", metavar="CSV", help="their labels")
    _add_weights(parser)


def _add_invert(parser: OneLineParser) -> None:
    parser.add_argument("--bundle", default="default", help="name, folder or zip of the bundle")
    parser.add_argument(
        "--data", required=True, action="append", metavar="FOLDER", help="pictures to learn from; may be repeated"
    )
    parser.add_argument("--minutes", type=_positive, default=20.0, help="of computing, all threads together (20)")
    parser.add_argument("--pictures", type=_count, metavar="N", help="length in pictures seen, instead of minutes")
    parser.add_argument("--levels", type=_level, nargs="+", default=[0, 2, 4], metavar="LEVEL", help="(0 2 4)")
    parser.add_argument("--depth", type=_level, metavar="N", help="encoder depth (4, else the deepest)")
    parser.add_argument(
        "--side-px", type=_side, default=256, metavar="PX", help="short side at which training pictures are seen (256)"
    )
    parser.add_argument("--eval", metavar="FOLDER", help="pictures to measure on, beside the held-out tenth")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N pictures of --eval")
    parser.add_argument("--show", metavar="FOLDER", help="pictures to draw; default: scikit-image's photographs")
    parser.add_argument("--weights", metavar="FILE", help="measure this inverter.pt, train nothing")
    parser.add_argument("--threads", type=_count, default=1, help="of training and drawing (1)")
    parser.add_argument("--out", metavar="FOLDER", default="runs/inversion", help="results (runs/inversion)")


def _add_bench(parser: OneLineParser) -> None:
    parser.add_argument("--bundle", default="default", help="name, folder or zip of the bundle")
    parser.add_argument("--engine", choices=("auto", "openvino", "onnxruntime"), default="auto", help="the cloud's")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="the cloud's")
    parser.add_argument("--threads", type=_count, default=1, help="threads of every stage (1)")
    parser.add_argument("--rounds", type=_count, default=60, help="times that each stage is timed, in turn (60)")
    _add_weights(parser)


def _add_weights(parser: OneLineParser) -> None:
    parser.add_argument("--classifier-weights", metavar="FILE", help="state dict of the classifier")


def _add_bundle(parser: OneLineParser) -> None:
    parser.add_argument(
        "action",
        choices=("show", "verify", "sign", "signer"),
        help="show what is in it, check every file, sign it, or make the key that signs",
    )
    parser.add_argument("bundle", nargs="?", default="default", help="name, folder or zip (default); to sign: a folder")
    parser.add_argument("--key", metavar="FILE", default="keys/bundles.signer", help="who signs (keys/bundles.signer)")


def _add_keys(parser: OneLineParser) -> None:
    parser.add_argument(
        "action",
        choices=("server", "node", "public"),
        help="make the cloud's pair, make a node's pair, or print the public key of a file",
    )
    parser.add_argument("name", nargs="?", help="what the node is called, or the file")
    parser.add_argument("--out", metavar="FOLDER", help="default: keys for the cloud's pair, keys/nodes for a node's")
    parser.add_argument("--replace", action="store_true", help="overwrite a pair that is there: it is gone for good")


def _add_doctor(parser: OneLineParser) -> None:
    parser.add_argument("--bundle", default="default", help="name, folder or zip of the bundle to verify")


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One sub-command of `rac`.

    Attributes:
        module: has `run(arguments) -> exit code`; imported when the command runs.
        summary: what it does, for --help.
    """

    module: str
    summary: str
    add_arguments: Callable[[OneLineParser], None]


SUBCOMMANDS: Final[Mapping[str, Subcommand]] = {
    "demo": Subcommand("nodes.demo", "one cloud and some nodes on this machine, over real sockets", _add_demo),
    "eval": Subcommand(
        "pipeline.evaluation.command", "rate and accuracy of a bundle at every depth and level", _add_eval
    ),
    "train": Subcommand("pipeline.training.command", "train a codec by a recipe", _add_train),
    "sweep": Subcommand(
        "pipeline.training.sweep_command", "train all networks of a comparison under one budget", _add_sweep
    ),
    "export": Subcommand("pipeline.training.export_command", "make a bundle from a checkpoint", _add_export),
    "invert": Subcommand(
        "pipeline.training.invert_command", "draw pictures from coded features: what they give away", _add_invert
    ),
    "bench": Subcommand("pipeline.bench.command", "what each stage costs on this machine", _add_bench),
    "bundle": Subcommand("nodes.bundle_command", "look into a bundle, verify it or sign it", _add_bundle),
    "keys": Subcommand("nodes.keys_command", "make the keys with which cloud and nodes trust one another", _add_keys),
    "doctor": Subcommand("nodes.doctor", "say what is wrong with this machine", _add_doctor),
}


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return number


def _batch(text: str) -> int:
    number = _count(text)
    if number < 2:
        raise argparse.ArgumentTypeError("must be 2 at least")
    return number


def _level(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, not {text}")
    return int(text)


def _side(text: str) -> int:
    side = _count(text)
    if side < MIN_SIDE_PX:
        raise argparse.ArgumentTypeError(f"must be at least {MIN_SIDE_PX}, not {text}")
    return side


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text}")
    return int(text)
