"""`rac doctor` on machines that lack something."""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from nodes import doctor
from nodes.doctor import Finding
from nodes.lifecycle import EXIT_FAILURE, EXIT_OK


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_json_has_every_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_packages", lambda: iter([Finding("packages", "ok", "all")]))
    monkeypatch.setattr(doctor, "check_bundle", lambda name: iter([Finding("bundle", "warn", name)]))
    assert doctor.run(argparse.Namespace(json=True, bundle="mine")) == EXIT_OK
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    names = [check["check"] for check in report["checks"]]
    expected = ["python", "packages", "cores", "cameras", "ports", "cache", "coder", "engine", "bundle"]
    assert names == expected
    assert report["checks"][-1] == {"check": "bundle", "status": "warn", "text": "mine"}


def test_failed_check_is_code_1_and_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda bundle: iter([Finding("engine", "fail", "none")]))
    assert doctor.run(argparse.Namespace(json=False, bundle="default")) == EXIT_FAILURE
    assert capsys.readouterr().out == "fail engine    none\n"


def test_check_that_breaks_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Finding]:
        raise OSError("no such device")
        yield

    monkeypatch.setattr(doctor, "check_cores", broken)
    monkeypatch.setattr(doctor, "check_bundle", lambda name: iter(()))
    found = {finding.check: finding for finding in doctor.examine("default")}
    assert found["cores"].status == "fail"
    assert "no such device" in found["cores"].text
    assert found["engine"].status == "ok"


def test_absent_package_names_the_way_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["numpy>=1.26", 'torch==2.13.0; extra == "cloud"', 'invented>=1; extra == "demo"']
    monkeypatch.setattr(metadata, "requires", lambda name: requirements)
    found = {finding.check: finding for finding in doctor.check_packages()}
    assert found["node"].status == "ok"
    assert found["demo"].status == "warn", "an extra that is not there is no failure"
    assert "pip install 'edge-cloud-rac[demo]'" in found["demo"].text


def test_base_package_that_is_absent_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["invented>=1"])
    assert only(doctor.check_packages()).status == "fail"


def test_package_for_another_machine_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metadata,
        "requires",
        lambda name: [
            'invented==1; platform_machine == "x86_64" or sys_platform == "darwin"',
            'numpy>=1; platform_machine != "x86_64" and sys_platform != "darwin"',
        ],
    )
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    assert only(doctor.check_packages()).status == "ok"


def test_port_in_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {taken: "rac-cloud"})
        finding = only(doctor.check_ports())
    assert finding.status == "warn"
    assert f"{taken} (rac-cloud)" in finding.text


def test_cache_that_cannot_be_made_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("RAC_CACHE", str(in_the_way / "cache"))
    finding = only(doctor.check_cache())
    assert finding.status == "fail"
    assert "set RAC_CACHE" in finding.text
    monkeypatch.setenv("RAC_CACHE", str(tmp_path / "cache"))
    assert only(doctor.check_cache()).status in ("ok", "warn")


def test_bundle_that_is_none_is_a_failure(tmp_path: Path) -> None:
    finding = only(doctor.check_bundle(str(tmp_path)))
    assert finding.status == "fail"
    assert str(tmp_path) in finding.text
