"""Listing of input files: names, tokens, patterns, and the messages when there is nothing."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from winnow.contracts.errors import RecipeError, SetupError
from winnow.stages.sources._files import find_files, open_file, printable


def csvs(path: str | tuple[str, ...]) -> list[tuple[str, str]]:
    files = find_files("url_table", path, lambda name: name.endswith(".csv"), "csv file")
    for file in files:
        open_file(file.path).close()
    return [(file.name, file.path) for file in files]


def make(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root.as_posix()


def test_files_folders_globs_and_lists(tmp_path: Path) -> None:
    root = make(tmp_path, "d/b.csv", "d/a.csv", "d/e/c.csv", "d/_SUCCESS", "d/_tmp/x.csv",
                "d/.y.csv", "d/z.txt")  # fmt: skip

    def names(path: str | tuple[str, ...]) -> list[str]:
        return [name for name, _ in csvs(path)]

    assert names(f"{root}/d/z.txt") == ["z.txt"]
    assert names(f"{root}/d") == names(f"{root}/d/") == ["a.csv", "b.csv", "e/c.csv"]
    assert names(f"{root}/d/*.csv") == ["a.csv", "b.csv"]
    assert names(f"{root}/d/**/c.csv") == ["e/c.csv"]
    assert names(f"{root}/d/{{a,b}}.csv") == ["a.csv", "b.csv"]
    assert names((f"{root}/d/b.csv", f"{root}/d/a.csv")) == ["a.csv", "b.csv"]
    assert names((f"{root}/d/e", f"{root}/d/a.csv", f"{root}/d/*.csv")) == [
        "a.csv",
        "b.csv",
        "e/c.csv",
    ]
    assert csvs(f"file://{root}/d/a.csv") == [("a.csv", f"{root}/d/a.csv")]


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path, "d/a.csv")
    monkeypatch.chdir(tmp_path)
    for path in ("d", "d/a.csv", "./d/*.csv", "d/../d/a.csv"):
        assert csvs(path) == [("a.csv", f"{root}/d/a.csv")]
    monkeypatch.setenv("HOME", root)
    assert csvs("~/d/a.csv") == [("a.csv", f"{root}/d/a.csv")]


def test_a_file_that_exists_is_never_a_pattern(tmp_path: Path) -> None:
    root = make(tmp_path, "x[1].csv", "x{1..2}.csv", "x*.csv", "x1.csv")
    for name in ("x[1].csv", "x{1..2}.csv", "x*.csv"):
        assert csvs(f"{root}/{name}") == [(name, f"{root}/{name}")]


def test_links_are_read_once_and_loops_end(tmp_path: Path) -> None:
    root = make(tmp_path, "d/a.csv")
    (tmp_path / "d/up").symlink_to(tmp_path / "d")
    (tmp_path / "d/dead.csv").symlink_to("nowhere")
    (tmp_path / "d/same.csv").symlink_to("a.csv")
    assert [n for n, _ in csvs(f"{root}/d")] == ["a.csv", "same.csv"]
    assert [n for n, _ in csvs(f"{root}/d/**/*.csv")] == ["a.csv"]


def test_tokens_follow_size_and_time(tmp_path: Path) -> None:
    root = make(tmp_path, "a.csv")

    def token() -> str:
        [file] = find_files("url_table", f"{root}/a.csv", lambda _: True, "csv")
        return file.token

    first = token()
    assert token() == first
    os.utime(tmp_path / "a.csv", ns=(5, 5))
    second = token()
    assert second != first
    (tmp_path / "a.csv").write_text("longer")
    os.utime(tmp_path / "a.csv", ns=(5, 5))
    assert token() not in (first, second)


def test_tokens_of_a_store_change_with_the_object() -> None:
    store = fsspec.filesystem("memory")

    def tokens() -> list[str]:
        paths = ("memory://tokens/a.csv", "memory://tokens/*.csv")
        return [find_files("x", path, lambda _: True, "csv")[0].token for path in paths]

    store.pipe("/tokens/a.csv", b"one")
    before = tokens()
    assert tokens() == before
    store.pipe("/tokens/a.csv", b"two")
    assert all(a != b for a, b in zip(before, tokens(), strict=True))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "{root}/d/urls.cvs",
            r"no file or folder '.*urls\.cvs'; '.*d' holds: urls\.csv; did you mean",
        ),
        ("{root}/e/urls.csv", r"'.*' holds: d, empty"),
        ("{root}/d/*.parquet", r"no file matches '.*\*\.parquet'; '.*d' holds: urls\.csv"),
        ("{root}/empty", r"no csv file under '.*empty'; '.*empty' is empty"),
        ("{root}/d/u{{1..2}}.csv", r"no file or folder '.*u1\.csv'"),
        ("/no_such_place_at_all/x/y.csv", r"no file or folder"),
        ("memory://nothing/here.csv", "no file or folder"),
        ("memory://nothing/*.csv", "no file matches"),
        ("nosuch://bucket/a.csv", "cannot open .*nosuch"),
    ],
)
def test_nothing_there_says_what_is_near(tmp_path: Path, path: str, message: str) -> None:
    root = make(tmp_path, "d/urls.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SetupError, match=message):
        csvs(path.format(root=root))


def test_an_empty_path_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="path is empty"):
        csvs(())
    (tmp_path / os.fsdecode(b"\xe9.csv")).write_text("x")
    with pytest.raises(SetupError, match=r"the file name '.*\\xe9.csv' is not UTF-8"):
        csvs(tmp_path.as_posix())
    assert printable("plain ü\n") == "plain ü\n"


def test_chains_of_fsspec(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("in/a.csv", "a")
        archive.writestr("in/b.csv", "b")
    url = f"zip://in/*.csv::file://{tmp_path.as_posix()}/t.zip"
    assert [name for name, _ in csvs(url)] == ["a.csv", "b.csv"]
    [first, _] = csvs(url)
    with open_file(first[1]) as stream:
        assert stream.read() == b"a"
    fsspec.filesystem("memory").pipe("/chain/a.csv", b"x")
    assert csvs("simplecache::memory://chain/*.csv") == [
        ("a.csv", "simplecache::memory://chain/a.csv")
    ]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for key, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("winnow-tables")
    yield "winnow-tables"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_s3(bucket: str) -> None:
    store = fsspec.filesystem("s3")
    store.pipe({f"{bucket}/d/{name}": name.encode() for name in ("a.csv", "e/b.csv", "x.txt")})

    def read(path: str) -> list[tuple[str, str, str]]:
        files = find_files("url_table", path, lambda name: name.endswith(".csv"), "csv file")
        return [(file.name, file.path, file.token) for file in files]

    by_folder = read(f"s3://{bucket}/d")
    assert [entry[:2] for entry in by_folder] == [
        ("a.csv", f"s3://{bucket}/d/a.csv"),
        ("e/b.csv", f"s3://{bucket}/d/e/b.csv"),
    ]
    assert read(f"s3://{bucket}/d/**/*.csv") == by_folder
    assert read(f"s3://{bucket}/d/a.csv") == by_folder[:1]
    with open_file(by_folder[1][1]) as stream:
        assert stream.read() == b"e/b.csv"
    other = fsspec.filesystem("s3", skip_instance_cache=True)  # as another process would write
    other.pipe(f"{bucket}/d/a.csv", b"A.csv")
    assert read(f"s3://{bucket}/d")[0][2] != by_folder[0][2]
    with pytest.raises(SetupError, match=r"s3://.*d' holds: .*did you mean 'a.csv'"):
        read(f"s3://{bucket}/d/aa.csv")
    with pytest.raises(SetupError, match="no file or folder"):
        read("s3://no-such-bucket-here/x.csv")


def test_colons_in_a_local_name_join_no_stores(tmp_path: Path) -> None:
    root = make(tmp_path, "d/std", "d/std::vector.csv", "d/a::b/c.csv")
    assert csvs(f"{root}/d") == [
        ("a::b/c.csv", f"{root}/d/a::b/c.csv"),
        ("std::vector.csv", f"{root}/d/std::vector.csv"),
    ]
    with open_file(f"{root}/d/std::vector.csv") as stream:
        assert stream.read() == b"d/std::vector.csv"  # and not the bytes of "std"


def test_a_pipe_and_a_link_to_itself_are_no_tables(tmp_path: Path) -> None:
    root = make(tmp_path, "d/a.csv")
    os.mkfifo(tmp_path / "d/pipe.csv")
    (tmp_path / "d/loop.csv").symlink_to("loop.csv")
    (tmp_path / "d/dead.csv").symlink_to("nothing.csv")
    assert csvs(f"{root}/d") == [("a.csv", f"{root}/d/a.csv")]


def test_a_folder_that_cannot_be_listed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path, "d/a.csv")
    monkeypatch.chdir(tmp_path / "d")
    for _ in range(17):  # beyond the longest path that the system takes
        Path("n" * 250).mkdir()
        os.chdir("n" * 250)
    try:
        with pytest.raises(SetupError, match="cannot be listed.*File name too long"):
            csvs(f"{root}/d")
    finally:
        shutil.rmtree(tmp_path / "d" / ("n" * 250))
