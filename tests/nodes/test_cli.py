"""The commands as a user meets them: help, exit codes, one line for what is wrong."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nodes import cli
from nodes.arguments import KEY_PREFIX, SUBCOMMANDS, cloud_parser, config_flags, node_parser
from nodes.lifecycle import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, RunOptions
from pipeline.config import CloudConfig, NodeConfig, config_keys
from pipeline.errors import BundleFormatError

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "cv2", "onnxruntime", "zmq", "pydantic", "yaml", "rich", "prometheus_client", "torch")
LONGEST_HELP_S = 0.4

ENTRIES = {"rac-node": "node_main", "rac-cloud": "cloud_main", "rac": "main"}


def run_command(entry: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; from nodes.cli import {entry}; sys.exit({entry}())"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(autouse=True)
def _no_configuration_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(cli.os.environ):
        if name.startswith("RAC_"):
            monkeypatch.delenv(name)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands for every program: notes what it was started with."""
    calls: list[tuple[Any, ...]] = []

    def import_module(name: str) -> ModuleType:
        module = ModuleType(name)
        module.run = lambda *given: calls.append((name, *given)) or 0  # type: ignore[attr-defined]
        return module

    monkeypatch.setattr(cli, "import_module", import_module)
    return calls


@pytest.mark.parametrize("entry", ENTRIES.values())
def test_help_is_there_at_once(entry: str) -> None:
    """The best of three, and the processor's time, since the machine may be busy."""
    durations_s = []
    for _ in range(3):
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run_command(entry, "--help")
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        durations_s.append(ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime)
        assert (done.returncode, done.stderr) == (EXIT_OK, "")
        assert done.stdout.startswith("usage: rac")
    assert min(durations_s) < LONGEST_HELP_S


def test_entries_import_nothing_heavy() -> None:
    program = "import sys, nodes.cli; print([name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program, *HEAVY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_every_sub_command_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == EXIT_OK
    text = capsys.readouterr().out
    assert text.startswith(f"usage: rac {command}")
    assert "--json" in text


@pytest.mark.parametrize(("program", "entry"), ENTRIES.items())
def test_version(program: str, entry: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert getattr(cli, entry)(["--version"]) == EXIT_OK
    assert capsys.readouterr().out.startswith(f"{program} ")


@pytest.mark.parametrize(
    ("entry", "arguments", "words"),
    [
        ("node_main", ["--camra", "0"], "unknown argument --camra; did you mean --camera?"),
        ("node_main", ["--camera"], "argument --camera: expected one argument"),
        ("cloud_main", ["stray"], "unknown argument stray"),
        ("main", [], "name a command"),
        ("main", ["dmo"], "unknown 'dmo'; did you mean demo?"),
        ("main", ["demo", "--second", "5"], "did you mean --seconds?"),
        ("main", ["demo", "--seconds", "0"], "--seconds: must be above 0"),
        ("main", ["demo", "--cameras", "1.5"], "--cameras: must be a whole number"),
        ("main", ["eval"], "required: --data"),
    ],
)
def test_bad_argument_is_one_line_and_code_2(
    entry: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        getattr(cli, entry)(arguments)
    assert ended.value.code == EXIT_USAGE
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("entry", "arguments", "words"),
    [
        ("node_main", ["--budget-ms", "fast"], "command line: codec.budget_ms: must be a number"),
        ("node_main", ["--config", "/absent.yaml"], "/absent.yaml: cannot be read"),
        ("node_main", ["--camera", "ftp://host/x"], "ftp"),
        ("node_main", [], "cameras: name at least one"),
        (
            "cloud_main",
            ["--bind", "tcp://0.0.0.0:5570"],
            "link.bind: tcp://0.0.0.0:5570 can be reached",
        ),
        ("cloud_main", ["--results", "mail:me"], "results: 'mail:me' is no sink"),
    ],
)
def test_bad_configuration_is_one_line_and_code_2(
    entry: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], ran: list[Any]
) -> None:
    assert getattr(cli, entry)(arguments) == EXIT_USAGE
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1
    assert ran == []


def test_password_in_a_wrong_camera_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.node_main(["--camera", "ftp://admin:s3cret@host/x"]) == EXIT_USAGE
    assert "s3cret" not in capsys.readouterr().err


def test_check_config_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], ran: list[Any]) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("cameras: ['test:']")
    assert cli.node_main(["--config", str(path), "--check-config"]) == EXIT_OK
    assert cli.cloud_main(["--check-config"]) == EXIT_OK
    assert capsys.readouterr().out == "ok\nok\n"
    path.write_text("camera: 'test:'")
    assert cli.node_main(["--config", str(path), "--check-config"]) == EXIT_USAGE
    assert capsys.readouterr().err == f"rac-node: {path}: camera: unknown key; did you mean cameras?\n"
    assert ran == []


def test_check_config_as_json_shows_what_is_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--check-config", "--json", "--camera", "a=rtsp://me:s3cret@h/x", "--budget-ms", "5"]
    assert cli.node_main(arguments) == EXIT_OK
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is True
    assert shown["config"]["codec.budget_ms"] == 5.0
    assert shown["config"]["cameras"][0]["source"] == "a=rtsp://***@h/x"


@pytest.mark.parametrize(("entry", "file"), [("node_main", "node.yaml"), ("cloud_main", "cloud.yaml")])
def test_sample_config_is_the_file_in_configs(entry: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert getattr(cli, entry)(["--sample-config"]) == EXIT_OK
    assert capsys.readouterr().out == (ROOT / "configs" / file).read_text()


def test_node_is_started_with_its_configuration(ran: list[tuple[Any, ...]]) -> None:
    assert cli.node_main(["--camera", "0", "--camera", "door=test:", "--fps", "max", "--loop", "--json"]) == EXIT_OK
    ((module, config, options),) = ran
    assert module == "nodes.node_command"
    assert isinstance(config, NodeConfig)
    assert isinstance(options, RunOptions)
    assert [camera.argument for camera in config.cameras] == ["0", "door=test:"]
    assert (config.capture.fps, config.capture.loop, options.is_json) == ("max", True, True)
    assert config.name == cli.host_name()


def test_cloud_is_started_with_its_configuration(monkeypatch: pytest.MonkeyPatch, ran: list[tuple[Any, ...]]) -> None:
    monkeypatch.setenv("RAC_POOL__WORKERS", "3")
    assert cli.cloud_main(["--results", "-", "--bind", "tcp://127.0.0.1:*"]) == EXIT_OK
    ((module, config, _),) = ran
    assert module == "nodes.cloud_command"
    assert (config.pool.workers, config.results, config.link.bind) == (3, ("-",), "tcp://127.0.0.1:*")


def test_sub_command_gets_its_arguments(ran: list[tuple[Any, ...]]) -> None:
    assert cli.main(["demo", "--seconds", "5", "--cameras", "3", "--json"]) == EXIT_OK
    ((module, arguments),) = ran
    assert module == "nodes.demo"
    assert (arguments.seconds, arguments.cameras, arguments.json) == (5.0, 3, True)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BundleFormatError("x.zip: not a bundle"), EXIT_FAILURE, "rac: x.zip: not a bundle"),
        (BundleFormatError("two\nlines"), EXIT_FAILURE, "rac: two lines"),
        (ModuleNotFoundError("no", name="torch"), EXIT_FAILURE, "pip install 'edge-cloud-rac[cloud]'"),
        (KeyboardInterrupt(), EXIT_FAILURE, "rac: interrupted"),
    ],
)
def test_error_at_run_time_is_one_line_without_a_trace(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(cli, "import_module", fail)
    assert cli.main(["doctor"]) == code
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1


def test_module_of_ours_that_is_missing_is_a_bug_not_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise ModuleNotFoundError("no", name="nodes.invented")

    monkeypatch.setattr(cli, "import_module", fail)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["doctor"])


def test_reader_of_the_output_may_go_away() -> None:
    """`rac-node --sample-config | head -1` ends without a complaint."""
    program = "import sys; from nodes.cli import node_main; sys.exit(node_main())"
    writer = subprocess.Popen(
        [sys.executable, "-c", program, "--sample-config"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    assert writer.stderr.read() == ""
    assert writer.wait(60) == EXIT_FAILURE
    writer.stderr.close()


@pytest.mark.parametrize(("parser", "model"), [(node_parser(), NodeConfig), (cloud_parser(), CloudConfig)])
def test_every_flag_is_a_key_or_common(parser: Any, model: Any) -> None:
    keys = {action.dest.removeprefix(KEY_PREFIX) for action in parser._actions if action.dest.startswith(KEY_PREFIX)}
    assert keys <= set(config_keys(model))
    rest = {action.dest for action in parser._actions} - {KEY_PREFIX + key for key in keys}
    assert rest == {"help", "config", "check_config", "sample_config", "json", "version"}


def test_absent_flags_leave_the_file_in_force() -> None:
    assert config_flags(node_parser().parse([])) == {}
    assert config_flags(node_parser().parse(["--no-loop"])) == {"capture.loop": False}


@pytest.mark.parametrize("host", ["edge box.local", "x" * 90, "...", "kamera-\u00e4"])
def test_host_name_becomes_a_valid_name(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert NodeConfig(name=cli.host_name()).name
