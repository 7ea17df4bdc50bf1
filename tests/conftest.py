"""Shared fixtures: one Ray cluster a session, a recipe and workspace maker."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# A shell that starts this in the background has it ignore Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PLUGINS = str(Path(__file__).parent / "plugins")
sys.path.insert(0, PLUGINS)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [PLUGINS, os.environ.get("PYTHONPATH")]))

import winnow_toy  # noqa: E402, F401

from winnow.pipeline.recipe import Recipe, parse_recipe  # noqa: E402
from winnow.pipeline.run import RunOptions, RunReport, run_recipe  # noqa: E402


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, two CPUs."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., RunReport]:
    """Run recipe text in ``tmp_path/ws`` (or ``workspace=``), in this process by default."""

    def runner(text: str | Recipe, **options: Any) -> RunReport:
        recipe = text if isinstance(text, Recipe) else parse_recipe(text)
        options.setdefault("workspace", str(tmp_path / "ws"))
        options.setdefault("executor", "inprocess")
        return run_recipe(recipe, RunOptions(**options))

    return runner


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """A bucket on a server that speaks S3's protocol, over HTTP on loopback."""
    server_module = pytest.importorskip("moto.server")
    import logging

    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    old = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="winnow")
    yield "s3://winnow"
    for name, value in old.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.stop()
