"""What the compose file promises: health, limits, loopback, pinned versions and no secrets."""

from __future__ import annotations

import re
import shlex

import pytest
import tyro

from pipelines.build_lake import BuildLakeConfig
from pipelines.demo import DemoConfig
from tests.docker.files import COMPOSE_TEXT, DOCKERFILE, ROOT, SERVICES, STAYING, VOLUMES, by_default, instructions

NODES = ("head", "worker")
GB = 1 << 30


def size(text: str) -> int:
    """Return the bytes of a size such as 256m or 2g."""
    return int(text[:-1]) * {"m": 1 << 20, "g": GB}[text[-1]]


def option(service: str, name: str) -> str:
    """Return the value of --name in a service's command."""
    (value,) = [word.partition("=")[2] for word in SERVICES[service]["command"] if word.startswith(f"--{name}=")]
    return by_default(value)


def test_the_services_are_those_of_a_cluster_with_a_store() -> None:
    assert set(SERVICES) == {"credentials", "store", "head", "worker", "tensorboard", "demo"}


def test_ports_are_published_on_loopback() -> None:
    ports = {name: [by_default(port) for port in service.get("ports", [])] for name, service in SERVICES.items()}
    assert {name for name, published in ports.items() if published} == {"head", "store", "tensorboard"}
    assert all(port.startswith("127.0.0.1:") for published in ports.values() for port in published)


def test_what_asks_for_no_password_cannot_be_opened_to_the_network() -> None:
    assert [port for port in SERVICES["tensorboard"]["ports"] if "$" in port] == []
    # The S3 gateway asks for a key; the services behind it do not, and listen inside the container alone.
    assert "-ip.bind=127.0.0.1" in SERVICES["store"]["command"]
    assert "-s3.config=/credentials/s3.json" in SERVICES["store"]["command"]


@pytest.mark.parametrize("service", [*NODES, "demo"])
def test_who_speaks_to_ray_has_the_token(service: str) -> None:
    environment = SERVICES[service]["environment"]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == "/credentials/ray_token"
    assert "credentials:/credentials:ro" in SERVICES[service]["volumes"]


def test_every_service_has_a_memory_limit() -> None:
    assert all(size(by_default(service["mem_limit"])) >= 256 << 20 for service in SERVICES.values())


@pytest.mark.parametrize("node", NODES)
def test_rays_object_store_fits_into_shared_memory_and_that_into_the_limit(node: str) -> None:
    shared = size(SERVICES[node]["shm_size"])
    assert int(option(node, "object-store-memory")) < shared < size(by_default(SERVICES[node]["mem_limit"]))


def test_no_image_is_of_a_moving_version() -> None:
    (base,) = [text.partition("=")[2] for stage, kind, text in instructions() if (stage, kind) == ("", "ARG")]
    images = [by_default(service["image"]) for service in SERVICES.values()] + [base]
    tags = [image.rpartition("/")[2].partition(":")[2] for image in images]
    assert all(tag and "latest" not in tag for tag in tags), images
    # A version to the last digit, but for our own image, which is built from these very files.
    assert all(re.search(r"\d+\.\d+", tag) for image, tag in zip(images, tags, strict=True) if "/" in image)


def test_the_store_is_a_maintained_one() -> None:
    assert "seaweedfs" in SERVICES["store"]["image"]
    assert "minio" not in COMPOSE_TEXT.lower()


def test_what_stays_has_a_health_check_and_what_ends_has_none() -> None:
    for name, service in SERVICES.items():
        check = service.get("healthcheck", {})
        if name not in STAYING:
            assert check == {"disable": True}, name
        elif name == "worker":
            # The image's own, of a node; its port is the one that the worker's agent listens on.
            (port,) = re.findall(r'"http://127\.0\.0\.1:(\d+)/api/local_raylet_healthz"', DOCKERFILE)
            assert port == option("worker", "dashboard-agent-listen-port")
        else:
            assert check["test"][0] == "CMD", name


def test_health_is_asked_where_the_service_listens() -> None:
    head = " ".join(SERVICES["head"]["healthcheck"]["test"])
    assert f":{option('head', 'dashboard-port')}/" in head
    assert f":{option('head', 'dashboard-agent-listen-port')}/" in head
    assert f":{option('tensorboard', 'port')}/" in " ".join(SERVICES["tensorboard"]["healthcheck"]["test"])
    assert ":8333/" in " ".join(SERVICES["store"]["healthcheck"]["test"])
    assert "-s3.port=8333" in SERVICES["store"]["command"]


def test_everyone_waits_for_health_of_what_stays_and_for_the_end_of_what_ends() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            expected = "service_healthy" if other in STAYING else "service_completed_successfully"
            assert how == {"condition": expected}, (name, other)
    assert set(SERVICES["demo"]["depends_on"]) == {"head", "worker", "store"}


def test_workers_can_be_many() -> None:
    assert not {"container_name", "hostname", "ports"} & set(SERVICES["worker"])


def test_every_volume_is_declared_and_every_node_has_the_same() -> None:
    mounted = {name: [volume.partition(":")[0] for volume in s.get("volumes", [])] for name, s in SERVICES.items()}
    assert {volume for volumes in mounted.values() for volume in volumes} == set(VOLUMES)
    assert SERVICES["head"]["volumes"] == SERVICES["worker"]["volumes"] == SERVICES["demo"]["volumes"]


def test_our_containers_have_no_privileges() -> None:
    ours = [service for service in SERVICES.values() if "build" in service]
    assert len(ours) == len(SERVICES) - 1
    assert all(service["cap_drop"] == ["ALL"] for service in ours)
    assert not any(service.get("privileged") or service.get("user") == "root" for service in SERVICES.values())


def test_no_file_has_a_secret() -> None:
    names = {name for service in SERVICES.values() for name in service.get("environment", {})}
    assert not names & {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN"}
    secret = re.compile(r"AKIA[0-9A-Z]{16}|(?i:secret_access_key|password|auth_token)\s*[=:]\s*\w{8}")
    files = [path for path in (ROOT / "docker").iterdir() if path.is_file()]
    assert [path for path in files if path.name.startswith(".env") or secret.search(path.read_text())] == []


def test_every_file_that_a_command_names_is_in_the_image() -> None:
    named = set(re.findall(r"(?:/app/)?\b((?:pipelines|docker)/\w+\.py)", COMPOSE_TEXT + DOCKERFILE))
    assert {"pipelines/demo.py", "pipelines/build_lake.py", "docker/health.py"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_the_jobs_take_the_arguments_that_the_demo_gives_them() -> None:
    script = SERVICES["demo"]["command"][-1].replace("\\\n", " ")
    jobs = {}
    for line in script.splitlines():
        words = shlex.split(line)
        if words[:3] == ["ray", "job", "submit"]:
            jobs[words[words.index("python") + 1]] = words[words.index("python") + 2 :]
    demo = tyro.cli(DemoConfig, args=jobs["/app/pipelines/demo.py"])
    build = tyro.cli(BuildLakeConfig, args=jobs["/app/pipelines/build_lake.py"])
    assert demo.out.is_absolute()
    assert build.lake.startswith("s3://")
    assert all(source.startswith(f"{demo.out}/drives/val/") for source in build.source)
