"""Real input: Debian's Open Clip Art packages as a table of URLs, a server, and a whole curation.

    python benchmarks/openclipart.py --out data/openclipart         # build the table and the images
    python benchmarks/openclipart.py serve --folder data/openclipart/images --port 8123
    python benchmarks/openclipart.py demo                           # everything, funnel at the end

The packages openclipart-png and openclipart-svg hold about 8,100 public-domain drawings with the
titles and keywords that their uploaders typed (docs/openclipart.md).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from debian_packages import unpacked
from openclipart_metadata import Work, caption_of, read_work

HOST = "openclipart.test"
PACKAGES = ("openclipart-png", "openclipart-svg")
INSTALLED = Path("/usr/share/openclipart")

SCHEMA = pa.schema(
    {
        "url": pa.string(),
        "text": pa.string(),
        "title": pa.string(),
        "keywords": pa.string(),
        "description": pa.string(),
        "artist": pa.string(),
        "date": pa.string(),
        "declared_language": pa.string(),
        "license": pa.string(),
        "category": pa.string(),
        "metadata_error": pa.string(),
        "source_path": pa.string(),
    }
)
"""Of urls.parquet. Null = the SVG does not say. keywords: joined with ", "."""


def row_of(path: str, work: Work) -> dict[str, str | None]:
    """Return the table's row of the drawing at ``path`` (relative, without extension)."""
    said = {
        "text": caption_of(work),
        "title": work.title,
        "keywords": ", ".join(work.keywords),
        "description": work.description,
        "artist": work.artist,
        "date": work.date,
        "declared_language": work.language,
        "license": work.license,
        "metadata_error": work.error,
    }
    return {
        "url": f"http://{HOST}/{urllib.parse.quote(path)}.png",
        "category": path.rpartition("/")[0],
        "source_path": f"{path}.png",
        **{name: value or None for name, value in said.items()},
    }


def build(tree: Path, out: Path) -> Counter[str]:
    """Write images/, urls.csv.gz and, last, urls.parquet from a tree with png/ and svg/.

    The archive links many drawings into several folders; each link is a row of its own, as on the
    web. A link that leads out of the tree is left out. Returns counts for the reader.
    """
    root, counts, rows = tree.resolve(), Counter[str](), []
    placed: dict[Path, Path] = {}
    for svg in sorted((root / "svg").rglob("*.svg")):
        path = svg.relative_to(root / "svg").with_suffix("").as_posix()
        png = root / "png" / f"{path}.png"
        real = png.resolve()
        if not real.is_relative_to(root) or not svg.resolve().is_relative_to(root):
            counts["link out of the tree"] += 1
            continue
        if not real.is_file() or not svg.is_file():
            counts["without a PNG"] += 1
            continue
        target = out / "images" / f"{path}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if real in placed:
            os.link(placed[real], target)
            counts["linked images"] += 1
        else:
            shutil.copyfile(real, target)
            placed[real] = target
        work = read_work(svg)
        counts["rows"] += 1
        counts[f"metadata: {work.error or 'read'}"] += 1
        rows.append(row_of(path, work))
    if not rows:
        msg = f"{tree} holds no pair of svg/<path>.svg and png/<path>.png"
        raise SystemExit(msg)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    with gzip.GzipFile(out / "urls.csv.gz", "wb", mtime=0) as file:
        pyarrow.csv.write_csv(table.select(["url", "text"]), file)
    part = out / "urls.parquet.part"
    pq.write_table(table, part)
    part.replace(out / "urls.parquet")
    return counts


@contextlib.contextmanager
def package_tree(scratch: Path) -> Iterator[Path]:
    """Yield the folder with png/ and svg/: what is installed, or the packages unpacked."""
    if all((INSTALLED / kind).is_dir() for kind in ("png", "svg")):
        yield INSTALLED
        return
    otherwise = (
        "Or unpack them on any machine and say --tree FOLDER, the folder that holds their png/ and "
        "svg/"
    )
    with unpacked(PACKAGES, scratch, otherwise=otherwise) as folder:
        yield folder / "usr/share/openclipart"


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing per request."""


_NGINX = """
daemon off; master_process off; pid {scratch}/pid; error_log stderr;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; default_type application/octet-stream; types {{ image/png png; }}
  client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy;
  fastcgi_temp_path {scratch}/fastcgi; uwsgi_temp_path {scratch}/uwsgi;
  scgi_temp_path {scratch}/scgi;
  server {{ listen 127.0.0.1:{port}; root "{folder}"; }}
}}
"""


@contextlib.contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve a folder on loopback while the block runs; yield ``127.0.0.1:<port>``.

    nginx where it is installed, else ``serve`` in a process of its own.
    """
    port = port or _free_port()
    with tempfile.TemporaryDirectory(prefix="openclipart-") as scratch:
        config = Path(scratch, "nginx.conf")
        config.write_text(_NGINX.format(scratch=scratch, port=port, folder=folder.resolve()))
        nginx = shutil.which("nginx")
        command = [sys.executable, __file__, "serve", "--folder", str(folder), "--port", str(port)]
        if nginx:
            command = [nginx, "-p", scratch, "-c", str(config)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait_for(port, server)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def serve(folder: Path, port: int) -> None:
    """Serve a folder with Python until interrupted; print the address first."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        server.daemon_threads = True
        print(f"127.0.0.1:{server.server_address[1]}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, server: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    msg = f"the server on 127.0.0.1:{port} did not start"
    raise SystemExit(msg)


def demo(arguments: argparse.Namespace) -> None:
    """Build, serve, run the cheap filters, train a CLIP on what passes, curate with it."""
    build_command(arguments)
    out, runs = Path(arguments.out), Path(arguments.runs)
    workspace, model = runs / "openclipart", runs / "openclipart-clip"
    table = f"source.path={out / 'urls.parquet'}"
    with serving(out / "images") as address:
        common = ["--workspace", str(workspace), "--set", table, "--resolve", f"{HOST}={address}"]
        if arguments.executor:
            common += ["--executor", arguments.executor]
        printed = _winnow("run", "recipes/openclipart-cheap.yaml", *common)
        _train(_export_folder(printed), model, arguments)
        scorer = ["--set", f"stages.clip_score.model={model}"]
        _winnow("run", "recipes/openclipart.yaml", *common, *scorer)


def _train(shards: Path, model: Path, arguments: argparse.Namespace) -> None:
    """Train unless the model is younger than its data."""
    weights = model / "model.safetensors"
    if weights.is_file() and weights.stat().st_mtime > (shards / "sizes.json").stat().st_mtime:
        print(f"{model} is there; remove it to train again")
        return
    sizes = ["--samples", str(arguments.samples), "--vocabulary", str(arguments.vocabulary)]
    threads = ["--threads", str(arguments.threads)]
    _winnow("train", "contrastive", str(shards), "--out", str(model), *sizes, *threads)


def _winnow(*words: str) -> str:
    """Run the command; show its output as it comes and return it."""
    print(f"$ winnow {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "winnow.pipeline.cli", *words]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise SystemExit(process.returncode)
    return "".join(lines)


def _export_folder(printed: str) -> Path:
    """Return the export's folder from what ``winnow run`` printed."""
    found = re.search(r"^export \w+: (.+)$", printed, re.MULTILINE)
    if found is None:
        msg = "winnow run printed no export"
        raise SystemExit(msg)
    return Path(found[1])


def build_command(arguments: argparse.Namespace) -> None:
    """Build the data unless it is there."""
    out = Path(arguments.out)
    if (out / "urls.parquet").is_file() and not arguments.force:
        print(f"{out}/urls.parquet is there; --force builds it again")
        return
    out.mkdir(parents=True, exist_ok=True)
    if arguments.tree:
        counts = build(Path(arguments.tree), out)
    else:
        with package_tree(out) as tree:
            counts = build(tree, out)
    for name, count in sorted(counts.items()):
        print(f"{count:>7,} {name}")
    print(f"{out}/urls.parquet")


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line; ``build`` is the default command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", nargs="?", choices=["build", "serve", "demo"], default="build")
    parser.add_argument("--out", default="data/openclipart", help="folder of the data")
    parser.add_argument("--tree", help="unpacked packages: a folder with png/ and svg/")
    parser.add_argument("--force", action="store_true", help="build again what is there")
    parser.add_argument("--folder", default="data/openclipart/images", help="what to serve")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--runs", default="runs", help="folder of the workspace and the model")
    parser.add_argument("--samples", type=int, default=30_000, help="pairs seen in training")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the scorer")
    parser.add_argument("--threads", type=int, default=2, help="of the training")
    parser.add_argument("--executor", choices=["auto", "ray", "inprocess"], help="of both runs")
    arguments = parser.parse_args(words)
    if arguments.command == "serve":
        serve(Path(arguments.folder), arguments.port)
    elif arguments.command == "demo":
        demo(arguments)
    else:
        build_command(arguments)


if __name__ == "__main__":
    main()
