"""The composition: schema, references, locks, arguments; and a run of what it starts, in this machine's processes.

Flags, variables and paths are given to the programs' own parsers, so that none of them can be misspelt. No engine
starts it here: keys are made as it makes them, then cloud and node run with its arguments.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nodes.sources import parse_cameras
from pipeline.config import CloudConfig, NodeConfig
from tests.deploy.checks import COMPOSE, DEPLOY, NODES, ROOT, SERVICES, configuration, run, tool
from tests.e2e.conftest import PATIENT, Start, start  # noqa: F401 (a fixture is found by its name here)
from tests.e2e.programs import command, environment


def test_composition_keeps_the_schema() -> None:
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def mounts() -> Iterator[tuple[str, str, str, str]]:
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source, target, *mode = mount.split(":")
            yield name, source, target, "".join(mode)


def test_composition_names_what_is_there() -> None:
    """What the schema cannot see: services, volumes, files of this folder."""
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        assert set(service.get("networks", ())) <= set(COMPOSE["networks"]), name
        if "build" in service:
            assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file(), name
    for name, source, _, mode in mounts():
        if source.startswith("."):
            assert (DEPLOY / source).exists(), (name, source)
            assert mode == "ro"
        else:
            assert source in COMPOSE["volumes"], (name, source)
    assert {source for _, source, _, _ in mounts() if not source.startswith(".")} == set(COMPOSE["volumes"])


def test_composition_is_pinned_locked_and_on_this_machine_alone() -> None:
    for name, service in SERVICES.items():
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("user") is None or name == "keys", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_each_part_sees_its_own_keys_only() -> None:
    seen = {name: source for name, source, target, _ in mounts() if source.endswith("-keys") and name != "keys"}
    assert seen == {name: f"{name}-keys" for name in ("cloud", *NODES, "prometheus")}
    made = {target.removeprefix("/keys/"): source for name, source, target, _ in mounts() if name == "keys"}
    assert made == seen
    assert SERVICES["keys"]["entrypoint"] == ["rac-make-keys", "/keys", *NODES]


@pytest.mark.parametrize("name", ["cloud", *NODES])
def test_services_arguments_are_the_programs_own(name: str) -> None:
    service = SERVICES[name]
    program = "rac-cloud" if name == "cloud" else "rac-node"
    config = configuration(program, service["command"], service["environment"])
    assert config.metrics.token_file == "/run/rac/metrics-token"
    assert config.security.key == ("/run/rac/cloud.key" if name == "cloud" else "/run/rac/node.key")
    if name != "cloud":
        assert parse_cameras([camera.argument for camera in config.cameras])
        bind = SERVICES["cloud"]["command"][SERVICES["cloud"]["command"].index("--bind") + 1]
        assert list(config.cloud.endpoints) == [bind.replace("*", "cloud")]


def test_prometheus_finds_the_programs_of_the_composition() -> None:
    """By the name that each one has for itself too: the metrics server answers to no other."""
    expected = {f"cloud:{CloudConfig().metrics.port}", *(f"{name}:{NodeConfig().metrics.port}" for name in NODES)}
    files = sorted((DEPLOY / "prometheus/targets").glob("*.yml"))
    found = [target for path in files for entry in yaml.safe_load(path.read_text()) for target in entry["targets"]]
    assert sorted(found) == sorted(expected)
    for target in found:
        name = target.partition(":")[0]
        assert SERVICES[name]["hostname"] == name


def test_prometheus_and_its_token_are_where_its_configuration_looks() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    targets = {target for name, _, target, _ in mounts() if name == "prometheus"}
    flags = dict(flag.removeprefix("--").split("=") for flag in SERVICES["prometheus"]["command"])
    assert flags["config.file"] in targets
    folder = Path(flags["config.file"]).parent
    assert flags["storage.tsdb.path"] in targets
    wanted = {folder / path for path in config["rule_files"]}
    for job in config["scrape_configs"]:
        wanted.add(folder / job["authorization"]["credentials_file"])
        wanted |= {folder / path for discovery in job["file_sd_configs"] for path in discovery["files"]}
    assert {str(path.parent) for path in wanted} == targets - {flags["config.file"], flags["storage.tsdb.path"]}


def test_grafana_finds_dashboards_and_prometheus() -> None:
    mounted = {target: DEPLOY / source for name, source, target, _ in mounts() if name == "grafana"}
    provisioning = mounted["/etc/grafana/provisioning"]
    (providers,) = [yaml.safe_load(path.read_text()) for path in (provisioning / "dashboards").glob("*.y*ml")]
    (provider,) = providers["providers"]
    assert list(mounted[provider["options"]["path"]].glob("*.json"))
    (sources,) = [yaml.safe_load(path.read_text()) for path in (provisioning / "datasources").glob("*.y*ml")]
    (source,) = sources["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert SERVICES["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what `make-keys.sh` made, called twice as the composition does at its second start."""
    folder = tmp_path_factory.mktemp("deploy")
    script = folder / "bin/rac"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\ncd {shlex.quote(str(ROOT))}\nexec {shlex.join(command("rac"))} "$@"\n')
    script.chmod(0o755)
    path = os.pathsep.join((str(script.parent), os.environ["PATH"]))
    made = folder / "keys"
    run(DEPLOY / "make-keys.sh", made, *NODES, PATH=path)
    before = {file: file.read_bytes() for file in made.rglob("*") if file.is_file()}
    run(DEPLOY / "make-keys.sh", made, *NODES, PATH=path)
    assert {file: file.read_bytes() for file in made.rglob("*") if file.is_file()} == before
    return made


def test_secrets_are_their_owners_alone_but_for_prometheus(keys: Path) -> None:
    tokens = {path.read_text() for path in keys.rglob("metrics-token")}
    assert len(tokens) == 1
    assert len(tokens.pop()) == 48
    for path in keys.rglob("*"):
        is_public = path.suffix == ".pub" or "prometheus" in path.parts
        assert is_public or path.stat().st_mode & 0o077 == 0, path
    assert (keys / "prometheus/metrics-token").stat().st_mode & 0o777 == 0o644
    assert {path.name for path in (keys / "cloud/nodes").iterdir()} == {f"{name}.pub" for name in NODES}


def moved(name: str, keys: Path) -> tuple[list[str], dict[str, str]]:
    """A service's arguments and environment for this machine: its own folder of keys, any port of loopback."""
    service = SERVICES[name]
    variables = {key: value.replace("/run/rac", str(keys / name)) for key, value in service["environment"].items()}
    variables |= {"RAC_METRICS__HOST": "127.0.0.1", "RAC_METRICS__PORT": "0"}
    return [word.replace("tcp://*:5570", "tcp://127.0.0.1:0") for word in service["command"]], variables


def health(url: str, **variables: str) -> subprocess.CompletedProcess[str]:
    port = url.removesuffix("/metrics").rpartition(":")[2]
    words = [sys.executable, str(DEPLOY / "healthcheck.py"), port]
    return subprocess.run(words, env=environment(**variables), capture_output=True, text=True, check=False)


@pytest.mark.timeout(300)
def test_cloud_and_node_of_the_composition_work_together(start: Start, keys: Path) -> None:  # noqa: F811
    """With the keys that were made, behind the token that was made, and the health check of the images."""
    pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")
    words, variables = moved("cloud", keys)
    cloud = start("rac-cloud", *words, **PATIENT | variables)
    cloud.wait_event("ready")
    facts = cloud.get("start")[0]
    assert facts["security"] == "keys"
    words, variables = moved("node-a", keys)
    node = start("rac-node", *words, **variables | {"RAC_CLOUD__ENDPOINTS": f'["{facts["endpoint"]}"]'})
    node.wait_event("result", 3)

    token_file = {"RAC_METRICS__TOKEN_FILE": str(keys / "prometheus/metrics-token")}
    for program in (cloud, node):
        url = program.get("start")[0]["metrics"]
        done = health(url, **token_file)
        assert done.returncode == 0, done.stdout
        done = health(url)
        assert (done.returncode, done.stdout[:4]) == (1, "401:")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url)
    node.end()
    cloud.end()
    assert health(facts["metrics"], **token_file).returncode == 1
