"""`rac doctor`: what this machine has, what it lacks, and what to do about it.

Every check is a function that looks and says ok, warn (something works less well, or a part cannot be used)
or fail (nothing will work). A check that breaks is a failed check, not the end of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Final, Literal

from nodes.lifecycle import EXIT_FAILURE, EXIT_OK
from nodes.version import DISTRIBUTION

PYTHONS: Final = ((3, 11), (3, 12))
PORTS: Final = {5570: "rac-cloud", 9570: "metrics of rac-node", 9580: "metrics of rac-cloud"}
# A worker with the default classifier takes a few hundred MB; the cache holds some 20 MB a bundle.
MIN_CACHE_FREE_BYTES: Final = 200 * 2**20


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        status: ok, warn or fail.
        text: what was found, and what to do when it is not ok.
    """

    check: str
    status: Literal["ok", "warn", "fail"]
    text: str


def run(arguments: argparse.Namespace) -> int:
    """Entry of the sub-command; 1 when a check failed.

    Args:
        arguments: bundle, json.
    """
    findings = list(examine(arguments.bundle))
    if arguments.json:
        print(json.dumps({"ok": _is_fine(findings), "checks": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            print(f"{finding.status:<5}{finding.check:<10}{finding.text}")
    return EXIT_OK if _is_fine(findings) else EXIT_FAILURE


def examine(bundle: str) -> Iterator[Finding]:
    """Run every check.

    Args:
        bundle: name, folder or zip of the bundle to verify.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": check_python,
        "packages": check_packages,
        "cores": check_cores,
        "cameras": check_cameras,
        "ports": check_ports,
        "cache": check_cache,
        "coder": check_coder,
        "engine": check_engine,
        "bundle": lambda: check_bundle(bundle),
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # a broken installation breaks in ways that nobody listed
            yield Finding(name, "fail", f"the check itself failed: {type(error).__name__}: {error}")


def check_python() -> Iterator[Finding]:
    """Version of the interpreter."""
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] in PYTHONS:
        yield Finding("python", "ok", found)
    else:
        yield Finding("python", "fail", f"{found}: use 3.11 or 3.12")


def check_packages() -> Iterator[Finding]:
    """Packages of the node and of each extra, by what the distribution says that it needs."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", "fail", f"{DISTRIBUTION} is not installed: pip install -e '.[cloud]', or make")
        return
    by_extra: dict[str, list[str]] = {}
    for requirement in requirements:
        named = re.match(r"[A-Za-z0-9._-]+", requirement)
        suffix = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        is_elsewhere = "platform_machine" in requirement and not _is_meant_for_here(requirement)
        if named is not None and not is_elsewhere:
            by_extra.setdefault(suffix[1] if suffix else "", []).append(named[0])
    for extra, names in sorted(by_extra.items()):
        versions = {name: _version(name) for name in names}
        missing = [name for name, version in versions.items() if version is None]
        title = extra or "node"
        if not missing:
            listed = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield Finding(title, "ok", listed)
        else:
            how = f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install {DISTRIBUTION}"
            status: Literal["warn", "fail"] = "warn" if extra else "fail"
            yield Finding(title, status, f"not installed: {', '.join(missing)}; to have it: {how}")


def check_cores() -> Iterator[Finding]:
    """Cores that this process may use."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    yield Finding("cores", "ok", f"{cores}; workers beyond that slow one another down")


def check_cameras() -> Iterator[Finding]:
    """Video devices, and whether they may be read."""
    devices = sorted(Path("/dev").glob("video*"))
    locked = [str(device) for device in devices if not os.access(device, os.R_OK | os.W_OK)]
    if locked:
        yield Finding("cameras", "warn", f"no right to use {', '.join(locked)}: join the group video")
    elif devices:
        yield Finding("cameras", "ok", ", ".join(map(str, devices)))
    else:
        yield Finding("cameras", "warn", "no /dev/video*; files, folders, URLs and test: work")


def check_ports() -> Iterator[Finding]:
    """Default ports on loopback."""
    taken = []
    for port, user in PORTS.items():
        with socket.socket() as probe:
            # As servers do: a port on which a connection has just ended is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(f"{port} ({user})")
    if taken:
        yield Finding("ports", "warn", f"in use, perhaps by us: {', '.join(taken)}")
    else:
        yield Finding("ports", "ok", f"free: {', '.join(map(str, PORTS))}")


def check_cache() -> Iterator[Finding]:
    """Whether the cache folder can be written."""
    from pipeline.inference import cache_root

    folder = cache_root()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
        statistics = os.statvfs(folder)
    except OSError as error:
        yield Finding("cache", "fail", f"{folder}: {error.strerror}; set RAC_CACHE to a folder of yours")
        return
    free_bytes = statistics.f_bavail * statistics.f_frsize
    if free_bytes < MIN_CACHE_FREE_BYTES:
        yield Finding("cache", "warn", f"{folder}: only {free_bytes / 2**20:.0f} MB free")
    else:
        yield Finding("cache", "ok", str(folder))


def check_coder() -> Iterator[Finding]:
    """What can write and read bitstreams."""
    found = [name for name in ("constriction", "numba") if util.find_spec(name) is not None]
    if found:
        yield Finding("coder", "ok", ", ".join(found))
    else:
        yield Finding("coder", "fail", f"neither constriction nor numba: pip install '{DISTRIBUTION}[numba]'")


def check_engine() -> Iterator[Finding]:
    """What the cloud can compute with."""
    found = [f"{name} {_version(name)}" for name in ("openvino", "onnxruntime") if util.find_spec(name) is not None]
    if found:
        yield Finding("engine", "ok", ", ".join(found))
    else:
        yield Finding("engine", "fail", "neither openvino nor onnxruntime")


def check_bundle(name: str) -> Iterator[Finding]:
    """Whether every file of a bundle is what its manifest says."""
    from pipeline.bundle import load_bundle
    from pipeline.errors import BundleError

    try:
        bundle = load_bundle(name)
    except BundleError as error:
        yield Finding("bundle", "fail", f"{name}: {error}")
        return
    manifest = bundle.manifest
    depths = ", ".join(map(str, manifest.depths))
    yield Finding("bundle", "ok", f"{manifest.name} {bundle.short_id}, {manifest.classifier}, depths {depths}")


def _is_fine(findings: list[Finding]) -> bool:
    return all(finding.status != "fail" for finding in findings)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _is_meant_for_here(requirement: str) -> bool:
    """Our two markers with a machine: constriction where it has wheels, numba elsewhere."""
    has_constriction = platform.machine() == "x86_64" or sys.platform == "darwin"
    return has_constriction == ("platform_machine ==" in requirement)
