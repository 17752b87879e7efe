"""Import rules: read from the source of every module, and looked at in fresh interpreters.

`lint-imports` holds the order of layers too; this file adds what it cannot say: which outside packages a
layer may use, that imports stand at the top, and what is really loaded.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Every module of pipeline has a layer; who adds one decides which.
LAYERS: dict[str, int] = {
    **dict.fromkeys(
        (
            "admission", "attempts", "authorisation", "batching", "bundle_signature", "bundle_trial",
            "camera_row", "camera_state", "classes", "cloud_actions", "cloud_ledger", "cloud_session",
            "config", "config_base", "config_files", "config_sample", "config_security", "credit_window",
            "drop_spells", "ed25519", "errors", "failover", "fleet_status", "heartbeat", "history", "ledger", "masking",
            "metrics", "node_cameras", "node_limits", "percentiles", "rate_control", "replay", "result_memory",
            "session", "spool_records", "totals", "wire", "wire_fields",
        ),
        0,
    ),
    **dict.fromkeys(("bitstream", "bundle", "bundle_delivery", "entropy", "frames"), 1),
    **dict.fromkeys(("decoding", "encoder", "inference", "view"), 2),
    "codec": 3,
    **dict.fromkeys(("bench", "evaluation", "training"), 4),
}  # fmt: skip
# What a layer adds to the standard library and to what the layers below it may use; above these: anything.
OUTSIDE: dict[int, set[str]] = {
    0: {"pydantic", "pydantic_core", "yaml", "msgpack"},
    1: {"numpy"},
    2: {"cv2", "onnxruntime", "openvino"},
}
ANYTHING_FROM = 3
# One module each: the place where a foreign library is met and its errors are mapped.
ONLY_IN = {
    "constriction": {"pipeline.entropy.rans"},
    "numba": {"pipeline.entropy.rans"},
    "prometheus_client": {"nodes.exporter"},
    "opentelemetry": {"nodes.tracing"},
    "zmq": {
        "nodes.edge",
        "nodes.cloud",
        "nodes.uplink",
        "nodes.frontdoor",
        "nodes.node_command",
        "nodes.cloud_command",
        "nodes.key_files",
        "nodes.authenticator",
        "nodes.bundle_bootstrap",
        "nodes.security",
    },
}
# Imported when used: --help has to be there at once, a machine may lack the coder, engine or extra, and torch
# lives in a process of its own.
LAZY = {
    "nodes.cli",
    "nodes.doctor",
    "nodes.preparation",
    "nodes.tracing",
    "pipeline.entropy.rans",
    "pipeline.inference",
}
LAZY_FROM_LAYER = 3
# Time, randomness and the environment are arguments; (module, import) that has a reason not to follow.
IMPURE = {"random", "secrets", "time", "uuid", "os"}
IMPURE_FROM_LAYER = 2
# Parts of training and evaluation that may meet: export seals a bundle with what it measured of it.
MEETING = {"pipeline.training.export_command"}

# Entries that must load without what is heavy or does not belong there.
FORBIDDEN_AT_ENTRY = {
    "nodes.node_command": {"torch", "onnx", "numba", "compressai", "openvino"},
    "nodes.cloud_command": {"torch", "onnx", "numba", "compressai", "cv2"},
    "nodes.edge": {"torch", "prometheus_client", "rich"},
    "nodes.capture": {"torch", "onnxruntime", "zmq"},
    "nodes.capture_child": {"torch", "onnxruntime", "zmq"},
    "nodes.uplink": {"torch", "cv2"},
    "nodes.worker": {"torch", "zmq", "cv2"},
    "nodes.cloud": {"torch", "cv2"},
    "nodes.sources": {"torch", "numpy", "cv2", "pydantic"},
    "nodes.lifecycle": {"numpy", "pydantic", "yaml", "zmq"},
    "nodes.log": {"numpy", "cv2", "pydantic", "zmq"},
    "nodes.exporter": {"torch", "cv2", "zmq"},
    "nodes.cli": {"numpy", "cv2", "pydantic", "yaml", "zmq", "rich", "onnxruntime", "prometheus_client"},
    "pipeline.encoder": {"torch", "cv2", "zmq"},
    "pipeline.session": {"numpy", "zmq"},
}


@dataclass(frozen=True)
class Import:
    """One imported module, as `package.module`, and whether it stands at the top of its file."""

    target: str
    line: int
    is_top: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for package in ("pipeline", "nodes") for path in sorted((ROOT / package).rglob("*.py"))
}


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    """Every import of a module but those for type checkers."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found: list[Import] = []

    def visit(node: ast.AST, is_top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend(Import(alias.name, child.lineno, is_top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}:{child.lineno}: write the full name"
                for alias in child.names:
                    name = f"{child.module}.{alias.name}"
                    found.append(Import(name if name in MODULES else str(child.module), child.lineno, is_top))
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            visit(child, is_top and not is_function)

    visit(tree, True)
    return tuple(found)


def layer_of(module: str) -> int:
    return LAYERS[module.split(".")[1]]


PIPELINE = [name for name in MODULES if name.startswith("pipeline.")]
NODES = [name for name in MODULES if name.startswith("nodes.")]


def test_every_module_has_a_layer() -> None:
    assert {name.split(".")[1] for name in PIPELINE} <= set(LAYERS)


@pytest.mark.parametrize("module", PIPELINE)
def test_pipeline_module_imports_its_layer_and_lower_ones(module: str) -> None:
    for each in imports_of(module):
        where = f"{module}:{each.line} imports {each.target}"
        assert not each.target.startswith("nodes"), where
        if each.target.startswith("pipeline."):
            assert layer_of(each.target) <= layer_of(module), where
            ours, theirs = module.split(".")[1], each.target.split(".")[1]
            if layer_of(module) == layer_of(each.target) == LAYERS["training"] and module not in MEETING:
                assert ours == theirs, where


@pytest.mark.parametrize("module", [name for name in PIPELINE if layer_of(name) < ANYTHING_FROM])
def test_pipeline_module_uses_what_its_layer_may(module: str) -> None:
    allowed = set().union(*(OUTSIDE[layer] for layer in range(layer_of(module) + 1)))
    for each in imports_of(module):
        package = each.target.partition(".")[0]
        is_ours = package in ("pipeline", "nodes") or package in sys.stdlib_module_names
        has_place = module in ONLY_IN.get(package, ())
        assert is_ours or has_place or package in allowed, f"{module}:{each.line} imports {each.target}"


@pytest.mark.parametrize("module", MODULES)
def test_foreign_library_is_met_in_its_place_only(module: str) -> None:
    for each in imports_of(module):
        package = each.target.partition(".")[0]
        assert module in ONLY_IN.get(package, {module}), f"{module}:{each.line} imports {each.target}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_stand_at_the_top(module: str) -> None:
    may_be_lazy = module in LAZY or (module in PIPELINE and layer_of(module) >= LAZY_FROM_LAYER)
    late = [f"{module}:{each.line} imports {each.target}" for each in imports_of(module) if not each.is_top]
    assert may_be_lazy or not late, late


@pytest.mark.parametrize("module", [name for name in PIPELINE if layer_of(name) < IMPURE_FROM_LAYER])
def test_time_chance_and_environment_are_arguments(module: str) -> None:
    assert not {each.target.partition(".")[0] for each in imports_of(module)} & IMPURE


def test_no_cycles() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done:
            return
        for each in imports_of(module):
            if each.is_top and each.target in MODULES:
                visit(each.target, (*path, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("package", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_package_file_holds_a_docstring_only(package: str) -> None:
    """So that importing one module never loads its neighbours."""
    body = ast.parse(MODULES[package].read_text(encoding="utf-8")).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


@pytest.mark.parametrize("entry", [name for name in FORBIDDEN_AT_ENTRY if name in MODULES])
def test_entry_loads_nothing_that_is_not_its_own(entry: str) -> None:
    program = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, entry],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not FORBIDDEN_AT_ENTRY[entry] & set(done.stdout.split())
