"""The Open Clip Art builder on small SVGs written by hand: no package manager, no network."""

from __future__ import annotations

import gzip
import importlib
import sys
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from PIL import Image

from winnow.pipeline.recipe import load_recipe

ROOT = Path(__file__).parents[2]


def _load(name: str) -> ModuleType:
    """Import a script's module as the script does: by its plain name, from its folder."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


metadata = _load("openclipart_metadata")
openclipart = _load("openclipart")

SVG = """<?xml version="1.0" encoding="UTF-8"?>
{doctype}<svg xmlns="http://www.w3.org/2000/svg">
 <title>not this one</title>
 <metadata><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
   xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/">
  {works}
  <cc:License rdf:about="http://example.org/"><cc:permits rdf:resource="http://p/"/></cc:License>
 </rdf:RDF></metadata>
 <path d="M 0 0"/>
</svg>"""

WORK = """<cc:Work rdf:about="">
 <dc:title>  Old\n car &amp; driver </dc:title>
 <dc:description>seen in Gij&#243;n</dc:description>
 <dc:subject><rdf:Bag><rdf:li>car</rdf:li><rdf:li></rdf:li><rdf:li>road_travel</rdf:li>
  <rdf:li>hash(0x8a393fc)</rdf:li><rdf:li>HASH</rdf:li><rdf:li>Road travel</rdf:li>
  <rdf:li>Ann Other</rdf:li><rdf:li>11</rdf:li><rdf:li>driver's seat</rdf:li></rdf:Bag></dc:subject>
 <dc:publisher><cc:Agent rdf:about="h"><dc:title>A Library</dc:title></cc:Agent></dc:publisher>
 <dc:creator><cc:Agent><dc:title>Ann Other</dc:title></cc:Agent></dc:creator>
 <dc:rights><cc:Agent><dc:title>Nobody</dc:title></cc:Agent></dc:rights>
 <dc:date>2005-06-23</dc:date><dc:language>en</dc:language>
 <cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/>
</cc:Work>"""

EMPTY_WORK = '<cc:Work rdf:about=""><dc:title></dc:title></cc:Work>'


def _svg(path: Path, works: str = WORK, doctype: str = "", text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SVG.format(works=works, doctype=doctype) if text is None else text, "utf-8")
    return path


def _png(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), colour).save(path)
    return path


def test_read_work(tmp_path: Path) -> None:
    work = metadata.read_work(_svg(tmp_path / "a.svg"))
    assert work.title == "Old car & driver"
    assert work.keywords[:3] == ("car", "road_travel", "hash(0x8a393fc)")
    assert work.description == "seen in Gij\u00f3n"
    assert (work.artist, work.date, work.language) == ("Ann Other", "2005-06-23", "en")
    assert work.license == "http://web.resource.org/cc/PublicDomain"
    assert work.error == ""


def test_the_work_with_a_title_is_taken(tmp_path: Path) -> None:
    assert metadata.read_work(_svg(tmp_path / "a.svg", EMPTY_WORK + WORK)).artist == "Ann Other"
    assert metadata.read_work(_svg(tmp_path / "b.svg", EMPTY_WORK)) == metadata.Work()


BOMB = (
    '<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {n} "{f"&{m};" * 10}">' for m, n in pairwise("abcdefghi"))
    + "]>\n"
)


@pytest.mark.parametrize(
    ("doctype", "works", "error"),
    [
        (BOMB, WORK.replace("Old", "&i;"), "entities"),
        ('<!DOCTYPE svg [<!ENTITY x SYSTEM "SECRET">]>', WORK.replace("Old", "&x;"), "entities"),
        ('<!DOCTYPE svg [<!ENTITY % x SYSTEM "SECRET"> %x;]>', WORK, "entities"),
        ('<!DOCTYPE svg SYSTEM "SECRET">', WORK, ""),
        ("", "", "no_metadata"),
    ],
)
def test_hostile_documents(tmp_path: Path, doctype: str, works: str, error: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    svg = _svg(tmp_path / "a.svg", works, doctype.replace("SECRET", secret.as_uri()))
    work = metadata.read_work(svg)
    assert work.error == error
    assert "secret" not in repr(work)
    assert (work.title != "") == (error == "")


def test_damaged_documents(tmp_path: Path) -> None:
    whole = SVG.format(works=WORK, doctype="")
    after = whole[: whole.index("<path")]
    assert metadata.read_work(_svg(tmp_path / "a.svg", text=after)).title == "Old car & driver"
    before = whole[: whole.index("<cc:Work")]
    assert metadata.read_work(_svg(tmp_path / "b.svg", text=before)).error == "malformed"
    assert metadata.read_work(_svg(tmp_path / "c.svg", text="")).error == "malformed"
    long = WORK.replace("Old", "x" * 100_000)
    title = metadata.read_work(_svg(tmp_path / "d.svg", long)).title
    assert len(title) <= metadata.MAX_FIELD_CHARACTERS


@pytest.mark.parametrize(
    ("title", "keywords", "artist", "caption"),
    [
        ("Nauru", ("hash", "micronesia", "flag"), "", "Nauru, micronesia, flag"),
        ("Old car", ("car", "cars", "CARS"), "", "Old car, cars"),
        ("", ("unsorted", "button"), "", "button"),
        ("Rana01", ("ann other", "animal"), "Ann Other", "Rana01, animal"),
        ("C++ (c)", ("c++", "(", "a.b"), "", "C++ (c), a.b"),
        ("Spain", ("0x93148a4", "united_nations_member"), "", "Spain, united nations member"),
        ("gramastar", (), "", "gramastar"),
        ("", (), "", ""),
    ],
)
def test_caption(title: str, keywords: tuple[str, ...], artist: str, caption: str) -> None:
    work = metadata.Work(title=title, keywords=keywords, artist=artist)
    assert metadata.caption_of(work) == caption


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for path, colour in (("animals/dog", "brown"), ("odd/50% off #1+\u00e9", "red")):
        _svg(root / "svg" / f"{path}.svg")
        _png(root / "png" / f"{path}.png", colour)
    _svg(root / "svg/odd/no_picture.svg")
    _svg(root / "svg/people/dog.svg", EMPTY_WORK)
    (root / "png/people").mkdir()
    (root / "png/people/dog.png").symlink_to("../animals/dog.png")
    _png(tmp_path / "outside.png", "blue")
    _svg(root / "svg/people/evil.svg")
    (root / "png/people/evil.png").symlink_to(tmp_path / "outside.png")
    return root


def test_build(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    counts = openclipart.build(tree, out)
    assert counts["rows"] == 3
    assert counts["linked images"] == counts["without a PNG"] == counts["link out of the tree"] == 1
    table = pq.read_table(out / "urls.parquet")
    assert table.schema.equals(openclipart.SCHEMA)
    rows = table.to_pylist()
    assert [r["source_path"] for r in rows] == [
        "animals/dog.png",
        "odd/50% off #1+\u00e9.png",
        "people/dog.png",
    ]
    assert rows[0]["url"] == "http://openclipart.test/animals/dog.png"
    assert rows[1]["url"] == "http://openclipart.test/odd/50%25%20off%20%231%2B%C3%A9.png"
    assert rows[0]["text"] == "Old car & driver, road travel, driver's seat"
    assert rows[0]["category"] == "animals"
    assert (rows[2]["text"], rows[2]["artist"], rows[2]["license"]) == (None, None, None)
    dog = (tree / "png/animals/dog.png").read_bytes()
    assert (out / "images/people/dog.png").read_bytes() == dog
    assert not (out / "images/people/evil.png").exists()
    with gzip.open(out / "urls.csv.gz", "rt", encoding="utf-8") as file:
        assert file.readline().strip() == '"url","text"'
    first = {p: (out / p).read_bytes() for p in ("urls.parquet", "urls.csv.gz")}
    openclipart.build(tree, out)
    assert first == {p: (out / p).read_bytes() for p in first}


def test_server_serves_what_the_table_names(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    openclipart.main(["build", "--tree", str(tree), "--out", str(out)])
    rows = pq.read_table(out / "urls.parquet").to_pylist()
    with openclipart.serving(out / "images") as address:
        for row in rows:
            url = row["url"].replace(openclipart.HOST, address)
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert answer.read() == (out / "images" / row["source_path"]).read_bytes()
                assert answer.headers["Content-Type"] == "image/png"
        for path in ("robots.txt", "../urls.parquet", "%2e%2e/urls.parquet"):
            with pytest.raises(urllib.error.HTTPError) as missing:
                urllib.request.urlopen(f"http://{address}/{path}", timeout=10)
            assert missing.value.code in (400, 404)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://{address}/animals/dog.png", timeout=10)


def test_a_second_build_keeps_what_is_there(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tree", str(tree), "--out", str(tmp_path / "out")]
    openclipart.main(words)
    (tmp_path / "out/urls.parquet").write_bytes(b"mine")
    openclipart.main(words)
    assert "--force" in capsys.readouterr().out
    assert (tmp_path / "out/urls.parquet").read_bytes() == b"mine"
    openclipart.main([*words, "--force"])
    assert pq.read_table(tmp_path / "out/urls.parquet").num_rows == 3


def test_without_apt_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openclipart, "INSTALLED", tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="no apt-get and no dpkg-deb here.*--tree FOLDER"):
        openclipart.main(["--out", str(tmp_path / "out")])


def test_an_empty_tree_is_refused(tmp_path: Path) -> None:
    (tmp_path / "svg").mkdir()
    with pytest.raises(SystemExit, match="holds no pair"):
        openclipart.build(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["openclipart-cheap", "openclipart"])
def test_recipes_are_valid(name: str, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    openclipart.main(["build", "--tree", str(tree), "--out", str(out)])
    recipe = load_recipe(ROOT / f"recipes/{name}.yaml", [f"source.path={out / 'urls.parquet'}"])
    assert recipe.name == name
    assert recipe.exports
