"""Images per second and CPU-ms per image of the download stage: native engine against img2dataset.

A loopback server in a process of its own serves JPEGs of about --kilobytes each, over HTTP and
HTTPS (self-signed, beside the usual bundle of authorities), under one host name or under many
(--per-host images each, so the native engine also asks each of them for robots.txt). Both engines
fetch the same URLs through the same stage, in turn, --repeats times; the best run of each counts.
CPU is user + system time of this process and its children (the server's is not in it). img2dataset
has no keep-alive and builds a TLS context per URL; it keeps none of the fetcher's rules, so its
engine needs ``unsafe_fetch`` and gets loopback addresses.

    python benchmarks/download.py --images 1000
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import os
import resource
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import certifi
import numpy as np
import pyarrow as pa
from PIL import Image

from winnow.contracts.registry import STAGES
from winnow.contracts.stage import WorkerOptions

NUM_DIFFERENT = 32
DOMAIN = "bench.test"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    images_per_s: float
    cpu_ms: float


def jpeg(seed: int, size_bytes: int) -> bytes:
    """Return a JPEG of about the given size: noise, smoothed, at a width that gives the size."""
    rng = np.random.default_rng(seed)
    side = int((size_bytes * 2.2) ** 0.5)
    noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", quality=55)
    return out.getvalue()


class Server(asyncio.Protocol):
    """The least that serves: the number in the path picks the JPEG."""

    answers: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._pending = transport, b""

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while (end := self._pending.find(b"\r\n\r\n")) >= 0:
            head, self._pending = self._pending[:end], self._pending[end + 4 :]
            path = head.split(b" ", 2)[1]
            if path == b"/robots.txt":
                self._transport.write(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
            else:
                self._transport.write(self.answers[int(path[1:-4]) % NUM_DIFFERENT])
            if b"connection: close" in head.lower():
                self._transport.close()


async def serve(size_bytes: int, certificate: str, key: str) -> None:
    """Serve on two free ports, printed on the first line, until standard input ends."""
    for seed in range(NUM_DIFFERENT):
        body = jpeg(seed, size_bytes)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        Server.answers.append(head.encode() + body)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    loop = asyncio.get_running_loop()
    ports = []
    for tls in (None, context):
        listening = await loop.create_server(Server, "127.0.0.1", 0, ssl=tls, backlog=1024)
        ports.append(str(listening.sockets[0].getsockname()[1]))
    print(*ports, len(Server.answers[0]), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def make_certificate(folder: Path) -> tuple[Path, Path, Path]:
    """Return the paths of a bundle with a certificate for the hosts, of it alone, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", f"/CN={DOMAIN}"]
    names += ["-addext", f"subjectAltName=DNS:*.{DOMAIN},IP:127.0.0.1"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    bundle = folder / "bundle.pem"
    bundle.write_bytes(Path(certifi.where()).read_bytes() + certificate.read_bytes())
    return bundle, certificate, key


def cpu_s() -> float:
    """Return user + system seconds of this process and the children that have ended."""
    usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


def measure(engine: str, scheme: str, port: int, hosts: int, options: argparse.Namespace) -> Run:
    """Download once, the worker's setup not counted."""
    stage = STAGES.find("download")(
        engine=engine,
        unsafe_fetch=engine == "img2dataset",
        concurrency=options.connections,
        per_host=options.connections,
        timeout_s=60.0,
    )
    names = [f"host{i}.{DOMAIN}" for i in range(hosts)]
    state = stage.setup(WorkerOptions(resolve=dict.fromkeys(names, f"127.0.0.1:{port}")))
    urls = [f"{scheme}://{names[i % hosts]}/{i}.jpg" for i in range(options.images)]
    batch = pa.record_batch({"url": pa.array(urls, pa.string())})
    wall, cpu = time.perf_counter(), cpu_s()
    out = stage.annotate(batch, state, None)
    wall, cpu = time.perf_counter() - wall, cpu_s() - cpu
    state.close()
    assert out.column("image").null_count == 0, out.column("download_error").value_counts()
    return Run(images_per_s=options.images / wall, cpu_ms=1000 * cpu / options.images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--kilobytes", type=int, default=30)
    parser.add_argument("--connections", type=int, default=32, help="threads of img2dataset")
    parser.add_argument("--per-host", type=int, default=10, help="images per host name")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", nargs=2, metavar=("CERTIFICATE", "KEY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.kilobytes * 1000, *options.serve))
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle, certificate, key = make_certificate(Path(folder))
        os.environ["SSL_CERT_FILE"] = str(bundle)
        command = [sys.executable, __file__, "--kilobytes", str(options.kilobytes)]
        command += ["--serve", str(certificate), str(key)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as server:
            http, https, size = map(int, server.stdout.readline().split())
            print(f"{options.images} images of {size} bytes, {options.connections} connections")
            compare(options, {"http": http, "https": https})
            server.stdin.close()


def compare(options: argparse.Namespace, ports: dict[str, int]) -> None:
    """Print each engine's best run and their ratios."""
    many = max(options.images // options.per_host, 1)
    for (scheme, port), hosts in itertools.product(ports.items(), (1, many)):
        best: dict[str, Run] = {}
        for _ in range(options.repeats):
            for engine in ("native", "img2dataset"):
                run = measure(engine, scheme, port, hosts, options)
                known = best.get(engine, run)
                best[engine] = Run(
                    images_per_s=max(run.images_per_s, known.images_per_s),
                    cpu_ms=min(run.cpu_ms, known.cpu_ms),
                )
        native, peer = best["native"], best["img2dataset"]
        print(f"{scheme}, {hosts} host(s)")
        for engine, run in best.items():
            print(f"  {engine:12}{run.images_per_s:8.0f} images/s{run.cpu_ms:9.2f} CPU-ms/image")
        faster, less = native.images_per_s / peer.images_per_s, peer.cpu_ms / native.cpu_ms
        print(f"  native is   {faster:8.1f} x as fast{less:8.1f} x less CPU")


if __name__ == "__main__":
    main()
