"""What `deploy/` holds, judged without a container engine: linted, resolved, held against farebox, and replayed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from farebox.config import Config, load
from support import dockerfile
from support.http import call
from support.provider import FakeProvider, plain

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
IGNORE = (DEPLOY / "Dockerfile.dockerignore").read_text()
BUILD, FINAL = dockerfile.stages(DOCKERFILE)
COMPOSE_TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
CONFIG_TEXT = (DEPLOY / "farebox" / "config.yaml").read_text()
REQUIRED = dict.fromkeys(re.findall(r"\$\{(\w+):\?", COMPOSE_TEXT), "0123456789abcdef0123456789abcdef")
LEDGER_S = 10
"""How long a stop waits for the ledger after the calls, at most."""
START_S = 60


def tool(name: str) -> str:
    """A program beside this Python or on the PATH; without it the test skips."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*words: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **more)


def config() -> Config:
    """The deployed config, with what compose gives it."""
    env = {name: f"value-{name}-0123456789" for name in SERVICES["farebox"]["environment"]}
    env["DATABASE_URL"] = "postgresql://farebox:secret@postgres:5432/farebox"
    return load(CONFIG_TEXT, filename="config.yaml", env=env, read_file=lambda _: "")


# The image


def test_the_dockerfile_passes_its_linter() -> None:
    """hadolint has nothing to say."""
    ran = run(tool("hadolint"), "--failure-threshold", "style", DEPLOY / "Dockerfile")
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stdout + ran.stderr


def test_the_image_has_what_an_operator_expects() -> None:
    """Two stages on one pinned base, a numeric user that is not root, a health check without curl, a proper stop."""
    assert BUILD.base == FINAL.base and re.fullmatch(r"python:3\.\d+-slim-\w+", FINAL.base)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", FINAL.one("USER"))
    assert FINAL.one("STOPSIGNAL") == "SIGTERM"
    assert json.loads(FINAL.one("ENTRYPOINT")) == ["farebox"]
    assert FINAL.one("EXPOSE") == str(config().server.port)
    assert FINAL.one("VOLUME") == config().database.data_dir
    assert not re.search(r"\bcurl\b|\bwget\b|apt-get|pip install", " ".join(i.text for i in FINAL.instructions))
    assert "--only-binary :all:" in BUILD.all("RUN")[-1].text


def test_the_build_sees_what_it_copies_and_no_more(tmp_path: Path) -> None:
    """Every source of a COPY is sent to the build; credentials, data and history are not."""
    sources = [source for stage in (BUILD, FINAL) for pair in dockerfile.copied(stage) for source in pair[0]]
    assert sources
    for source in sources:
        file = ROOT / source
        file = next(file.rglob("*.py")) if file.is_dir() else file
        assert file.exists() and dockerfile.in_context(file, ROOT, IGNORE), source
    for secret in (
        ".env",
        "deploy/.env",
        "config.yaml",
        "farebox-data/admin-token",
        ".git/config",
        "tests/conftest.py",
    ):
        assert not dockerfile.in_context(ROOT / secret, ROOT, IGNORE), secret
    assert not dockerfile.in_context(ROOT / "src/farebox/__pycache__/app.pyc", ROOT, IGNORE)


async def test_the_health_check_tells_well_from_ill() -> None:
    """Its very command ends with 0 for a 200, with another code for an error and for nobody there."""

    async def code(port: int) -> int:
        words = dockerfile.health_command(FINAL, port)
        env = {**os.environ, "http_proxy": "http://127.0.0.1:9"}
        process = await asyncio.create_subprocess_exec(*words, env=env, stderr=asyncio.subprocess.DEVNULL)
        return await process.wait()

    async with FakeProvider() as somebody:
        somebody.then(plain(b'{"status":"ok"}'), plain(b"{}", status=503))
        assert await code(somebody.port) == 0
        assert await code(somebody.port) != 0
        assert [request.target for request in somebody.requests] == ["/healthz"] * 2
    assert await code(somebody.port) != 0


# Compose


def resolved(**environment: str) -> subprocess.CompletedProcess[str]:
    """`compose config` as an operator with this environment sees it."""
    kept = {name: value for name, value in os.environ.items() if name not in REQUIRED}
    return run(tool("docker-compose"), "--file", "compose.yaml", "--env-file", os.devnull, "config", "--format", "json",
               cwd=DEPLOY, env={**kept, **environment})  # fmt: skip


def test_compose_resolves_the_file() -> None:
    """Compose itself accepts it, with the farebox image built from this repository."""
    ran = resolved(**REQUIRED)
    assert ran.returncode == 0, ran.stderr
    model = json.loads(ran.stdout)
    assert set(model["services"]) == {"farebox", "postgres", "prometheus", "grafana"}
    build = model["services"]["farebox"]["build"]
    assert Path(build["context"], build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_compose_names_what_is_not_set(name: str) -> None:
    """Nothing starts with an empty secret: the variable is named."""
    ran = resolved(**{**REQUIRED, name: ""})
    assert ran.returncode != 0 and name in ran.stderr


def test_the_example_environment_names_every_variable() -> None:
    """Whoever fills in .env.example has set everything that compose.yaml asks for, and nothing else."""
    asked = set(re.findall(r"\$\{(\w+)", COMPOSE_TEXT))
    offered = set(re.findall(r"^#?(\w+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert asked == offered
    assert re.search(r"^/deploy/\.env$", (ROOT / ".gitignore").read_text(), re.MULTILINE)


def test_compose_starts_in_order_and_in_safety() -> None:
    """Each waits for one that has a health check, is pinned, listens on loopback by default and gains no rights."""
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            assert wait == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[other] or other == "farebox"
        # Compose can't write a secret that comes from the environment into a read-only root.
        assert not (service.get("read_only") and service.get("secrets"))
        assert re.search(r":[\w.-]+$", service["image"]) and not service["image"].endswith("latest")
        assert all(
            re.match(r"(127\.0\.0\.1|\$\{FAREBOX_ADDRESS:-127\.0\.0\.1\}):", port) for port in service.get("ports", ())
        )
        if name != "postgres":  # its entrypoint gives its folder to its user and then becomes it
            assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert SERVICES["farebox"]["read_only"] is True
    assert FINAL.all("HEALTHCHECK")


def binds() -> Iterator[tuple[str, Path, str]]:
    """Service, source and target of every folder or file that compose mounts."""
    for name, service in SERVICES.items():
        for volume in service["volumes"]:
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                yield name, DEPLOY / source, target
            else:
                assert source in COMPOSE["volumes"]


def test_what_is_mounted_exists_and_is_read_only() -> None:
    """No mount makes Docker invent an empty folder, and no container can change the repository."""
    for _, source, _ in binds():
        assert source.exists(), source
    assert all(volume.endswith(":ro") for s in SERVICES.values() for volume in s["volumes"] if volume.startswith("."))


def test_a_stop_gets_the_time_it_may_take() -> None:
    """Compose and systemd wait longer than open calls and the ledger's last rows can take."""
    needed = config().server.shutdown_timeout_s + LEDGER_S
    assert int(SERVICES["farebox"]["stop_grace_period"].removesuffix("s")) > needed
    assert int(unit()["Service"]["TimeoutStopSec"]) > needed


# The config


def test_the_config_is_one() -> None:
    """farebox reads it without fault or warning, listens for all, and keeps its journal on the volume."""
    deployed = config()
    assert deployed.warnings == () and set(deployed.providers) == {"openai", "claude"}
    assert deployed.server.host == "0.0.0.0" and deployed.server.admin_token and deployed.metrics.token
    targets = {volume.split(":")[1] for volume in SERVICES["farebox"]["volumes"]}
    assert {deployed.database.data_dir, "/etc/farebox"} <= targets


def test_compose_gives_the_config_its_variables() -> None:
    """Every ${VAR} of the config is among the container's environment, and none there is for nothing."""
    asked = set(re.findall(r"\$\{(\w+)\}", CONFIG_TEXT))
    assert asked == set(SERVICES["farebox"]["environment"])


# Prometheus and Grafana


def test_prometheus_accepts_its_config(tmp_path: Path) -> None:
    """promtool is content with the config, the rules lying where compose mounts them."""
    promtool = tool("promtool")
    for service, source, target in binds():
        if service == "prometheus":
            shutil.copy(source, tmp_path / Path(target).name)
            assert Path(target).parent == Path("/etc/prometheus")
    (tmp_path / "token").write_text("secret")
    file = tmp_path / "prometheus.yml"
    file.write_text(file.read_text().replace("/run/secrets/metrics_token", str(tmp_path / "token")))
    ran = run(promtool, "check", "config", file)
    assert ran.returncode == 0 and re.search(r"SUCCESS: \d+ rules found", ran.stdout), ran.stdout + ran.stderr


def test_the_parts_find_each_other() -> None:
    """Prometheus asks farebox with its token, Grafana asks Prometheus, and shows the dashboard that is mounted."""
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in prometheus["scrape_configs"]}
    assert jobs["farebox"]["static_configs"] == [{"targets": [f"farebox:{config().server.port}"]}]
    assert jobs["farebox"]["authorization"]["credentials_file"] == "/run/secrets/metrics_token"
    assert COMPOSE["secrets"]["metrics_token"] == {"environment": "FAREBOX_METRICS_TOKEN"}
    [source] = yaml.safe_load((DEPLOY / "grafana/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    [provider] = yaml.safe_load((DEPLOY / "grafana/dashboards/farebox.yaml").read_text())["providers"]
    shown = [target for service, source, target in binds() if source.name == "farebox-overview.json"]
    assert [str(Path(target).parent) for target in shown] == [provider["options"]["path"]]
    assert shown == [SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]]


# systemd


class Unit(RawConfigParser):
    """A unit file; its keys may come twice, the last one is kept."""

    def optionxform(self, name: str) -> str:
        return name


def unit() -> Unit:
    parser = Unit(strict=False, interpolation=None)
    parser.read(DEPLOY / "farebox.service")
    return parser


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """systemd-analyze finds no fault and little exposure in it."""
    analyze = tool("systemd-analyze")
    text = (DEPLOY / "farebox.service").read_text().replace("/opt/farebox/bin/farebox", sys.executable)
    file = tmp_path / "farebox.service"
    file.write_text(text)
    ran = run(analyze, "verify", "--man=no", file)
    assert (ran.returncode, ran.stderr) == (0, "")
    ran = run(analyze, "security", "--offline=yes", "--threshold=20", file)
    assert ran.returncode == 0, ran.stdout[-500:]


def test_the_unit_reloads_and_stops_as_farebox_does() -> None:
    """Reload is SIGHUP, a stop signals the main process only, and a faulty config (exit 2) is not tried again."""
    service = unit()["Service"]
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["KillMode"] == "mixed"
    assert service["RestartPreventExitStatus"] == "2"
    assert "/var/lib/" + service["StateDirectory"] == config().database.data_dir


# The wheel, and what the image would run


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the Dockerfile's build stage has been replayed."""
    folder = tmp_path_factory.mktemp("image")
    try:
        dockerfile.replay(BUILD, ROOT, IGNORE, folder)
    except subprocess.CalledProcessError as exc:
        if re.search(r"No matching distribution|Could not fetch|ConnectionError|Temporary failure", exc.stderr):
            pytest.skip(f"nothing can be installed here: {exc.stderr[-500:]}")
        raise AssertionError(f"{exc.cmd}:\n{exc.stdout}\n{exc.stderr}") from None
    return folder


@pytest.mark.long
def test_the_wheel_is_whole(image: Path) -> None:
    """The wheel has every module, SQL and data file of the package, and nothing else."""
    [wheel] = (image / "wheels").glob("farebox-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    files = {str(p.relative_to(source)) for p in (source / "farebox").rglob("*") if p.is_file()}
    # Compiled modules and what linters leave behind are of this machine.
    wanted = {name for name in files if "__pycache__" not in name and "/." not in name}
    assert {name for name in names if not name.startswith("farebox-")} == wanted


@pytest.mark.long
async def test_what_the_image_would_run_serves(image: Path, tmp_path: Path, database: str) -> None:
    """Installed from wheels alone, it starts on the deployed config, is healthy, calls through, and stops with 0."""
    farebox = image / "opt/farebox/bin/farebox"
    assert run(farebox, "--version").returncode == 0
    assert not (image / "opt/farebox/bin/pip").exists()
    data = tmp_path / "data"
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG_TEXT.replace("/var/lib/farebox", str(data)).replace("0.0.0.0", "127.0.0.1"))
    env = {**os.environ, **REQUIRED, "DATABASE_URL": database, "OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": ""}
    checked = run(farebox, "check", cwd=tmp_path, env=env)
    assert checked.returncode == 0, checked.stderr
    process = await asyncio.create_subprocess_exec(
        farebox, "serve", "--port", "0", cwd=tmp_path, env=env, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        said = ""
        async with asyncio.timeout(START_S):
            while "Then see its row:" not in said:
                line = await process.stderr.readline()
                assert line, said
                said += line.decode()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/v1", said)[1])  # type: ignore[index]
        key = re.search(r"first key\s+(fb-\w+)", said)[1]  # type: ignore[index]
        healthy = await asyncio.create_subprocess_exec(*dockerfile.health_command(FINAL, port))
        assert await healthy.wait() == 0
        body = json.dumps({"model": "farebox-demo", "messages": [{"role": "user", "content": "Hello!"}]}).encode()
        assert (await call(port, "/v1/chat/completions", body, key=key)).status == 200
        token = REQUIRED["FAREBOX_METRICS_TOKEN"]
        assert (await call(port, "/metrics", method="GET")).status == 401
        scraped = await call(port, "/metrics", method="GET", headers={"Authorization": f"Bearer {token}"})
        assert b'farebox_requests_total{provider="demo"' in scraped.body
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(START_S):
            await process.stderr.read()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
