"""How well the stage `language` finds English among short strings, against lid.176 alone.

Data: public multilingual strings, unpacked into one folder (about 0.5 GB):

    mkdir strings && cd strings
    npm pack cldr-annotations-full && tar xzf cldr-annotations-full-*.tgz
    apt-get download tuxpaint-stamps-default calligra-data gimp-data inkscape kstars-data \\
        plasma-workspace-data libkf5i18n-data kde-cli-tools-data okular nautilus-data \\
        gnome-control-center-data evolution-common tuxpaint-data
    for deb in *.deb; do dpkg-deb -x "$deb" "${deb%%_*}"; done
    python benchmarks/language.py --data . --save strings.parquet

Groups: stamps (descriptions of pictures, Tux Paint), cldr (names of emoji), ui (gettext catalogues
and .desktop files), long (ui strings of 11 to 60 words); the first three have at most 10 words.
Removed: translations equal to any English string of the set, strings that a fifth of the languages
in Latin letters leave untranslated (names), English variants, Nigerian Pidgin and Scots. Split by
English original: all translations of a string are in one half. `--fit` fits on the first half and
prints weights for stages/_language_evidence.py; figures are always for the second.
"""

from __future__ import annotations

import argparse
import gettext
import hashlib
import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from winnow.contracts.stage import WorkerOptions
from winnow.stages import _language_evidence as evidence
from winnow.stages._language_scripts import script_of
from winnow.stages.language import Identifier, Language, _lid, identify, prepare


class Row(NamedTuple):
    """One string: its English original names it."""

    group: str
    english: str
    language: str
    text: str


NOT_COUNTED = {"pcm", "sco", "x"}
_MARKUP = re.compile(r"[%<>\\{}\n|=$]|&[a-z]+;")
_ACCELERATOR = re.compile(r"\([_&]\w\)|[_&](?=\w)")


def read_stamps(folder: Path) -> Iterator[Row]:
    """Tux Paint's stamps: the first line is English, then `de.utf8=...`."""
    for path in folder.rglob("stamps/**/*.txt"):
        english, *lines = path.read_text("utf-8", "replace").splitlines() or [""]
        for line in lines:
            if found := re.match(r"([A-Za-z_@]+)\.utf8=(.+)", line):
                yield Row("stamps", english.strip(), found[1], found[2].strip())


def read_cldr(folder: Path) -> Iterator[Row]:
    """CLDR annotations: the spoken name of each emoji."""
    names: dict[str, dict[str, str]] = {}
    for path in folder.rglob("annotations/*/annotations.json"):
        items = json.loads(path.read_text("utf-8"))["annotations"].get("annotations", {})
        names[path.parent.name] = {k: v["tts"][0] for k, v in items.items() if "tts" in v}
    for language, items in names.items():
        for key in items.keys() & names["en"].keys():
            yield Row("cldr", names["en"][key], language, items[key])


def read_catalogues(folder: Path) -> Iterator[Row]:
    """Compiled gettext catalogues, without placeholders, markup and accelerators."""
    for path in folder.rglob("locale/*/LC_MESSAGES/*.mo"):
        try:
            with path.open("rb") as file:
                catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        except (OSError, ValueError, IndexError):  # a catalogue with a broken header
            continue
        for key, text in catalogue.items():
            english = str(key[0] if isinstance(key, tuple) else key).split("\x04")[-1]
            if english and not _MARKUP.search(english + text):
                yield Row("ui", _plain(english), path.parts[-3], _plain(text))


def read_desktop_files(folder: Path) -> Iterator[Row]:
    """`Comment[de]=` and `GenericName[de]=` of .desktop files."""
    for path in folder.rglob("*.desktop"):
        if not path.is_file():
            continue
        text = path.read_text("utf-8", "replace")
        found = re.findall(r"^(GenericName|Comment)(?:\[([^\]]+)\])?=(.+)$", text, re.MULTILINE)
        english = {field: value for field, language, value in found if not language}
        for field, language, value in found:
            if language and field in english:
                yield Row("ui", _plain(english[field]), language, _plain(value))


def _plain(text: str) -> str:
    return _ACCELERATOR.sub("", text).replace("...", "").replace("\u2026", "").strip(" :")


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def choose(rows: set[Row]) -> list[Row]:
    """Return the rows that are evidence: no names, no untranslated strings, a share of each."""
    rows |= {row._replace(language="en", text=row.english) for row in rows}
    english = {_letters(row.english) for row in rows}
    same: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for row in rows:
        if not row.language.startswith("en") and script_of(row.text) == "latin":
            written[row.english] += 1
            same[row.english] += _letters(row.text) == _letters(row.english)
    parts: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(rows):
        code = re.split(r"[_@-]", row.language)[0].lower()
        words = len(row.text.split())
        long = row.group == "ui" and 11 <= words <= 60
        named = written[row.english] and same[row.english] / written[row.english] >= 0.2
        copied = code != "en" and _letters(row.text) in english
        variant = code == "en" != row.language or code in NOT_COUNTED
        if named or copied or variant or script_of(row.text) == "none":
            continue
        if long or (words <= 10 and len(row.text) <= 120):
            group = "long" if long else row.group
            parts[group, code].append(Row(group, row.english, code, row.text))
    chosen: list[Row] = []
    for (group, code), part in sorted(parts.items()):
        cap = 6_000 if code == "en" else 100_000 if group == "stamps" else 400
        chosen += random.Random(0).sample(part, min(cap, len(part)))
    return chosen


def held_out(row: Row) -> bool:
    """Whether the row is in the half that is reported; the same for all its translations."""
    return hashlib.sha256(_letters(row.english).encode()).digest()[0] % 2 == 1


def report(rows: list[Row], name: str, label: Callable[[str], str]) -> None:
    """Print recall and false positives of English per group."""
    for group in ("stamps", "cldr", "ui", "long"):
        hits: Counter[tuple[bool, bool]] = Counter()
        wrong: Counter[str] = Counter()
        latin = 0
        for row in rows:
            if row.group == group and held_out(row):
                said = label(row.text) == "en"
                hits[row.language == "en", said] += 1
                if row.language != "en":
                    latin += script_of(row.text) == "latin"
                    wrong[row.language] += said
        positives, negatives = hits[True, True] + hits[True, False], sum(wrong.values())
        others = hits[False, True] + hits[False, False]
        if positives and others:
            print(
                f"{name:10} {group:7} English found {hits[True, True] / positives:.3f}"
                f" of {positives}; called English {negatives / others:.4f} of {others} others"
                f" ({negatives / max(1, latin):.4f} of {latin} in Latin letters); most:",
                ", ".join(f"{code} {count}" for code, count in wrong.most_common(5)),
            )


def report_confidence(rows: list[Row], identifier: Identifier) -> None:
    """Print how often labels of a given confidence are right, were half of the Latin English."""
    names = {"nb": "no", "fil": "tl", "yue": "zh"}
    known = set(_lid(identifier.model, "x", 300))
    bins: defaultdict[tuple[str, int], list[tuple[float, bool]]] = defaultdict(list)
    positives = latin = 0
    for row in rows:
        code = names.get(row.language, row.language)
        if held_out(row) and row.group != "long" and code in known:
            label, confidence = identify(row.text, identifier)
            positives += code == "en"
            latin += code != "en" and script_of(row.text) == "latin"
            kind = "en" if label == "en" else "Latin" if script_of(row.text) == "latin" else "other"
            bins[kind, min(9, int(confidence * 10))].append((confidence, label == code))
    share = positives / max(1, latin)  # English : others in Latin letters, here
    for (kind, _), values in sorted(bins.items()):
        weights = [1 / share if kind == "en" and right else 1.0 for _, right in values]
        said = sum(w * v[0] for w, v in zip(weights, values, strict=True)) / sum(weights)
        right = sum(w * v[1] for w, v in zip(weights, values, strict=True)) / sum(weights)
        print(f"confidence {kind:6} said {said:.2f} right {right:.2f} ({len(values)})")


def report_labels(rows: list[Row], identifier: Identifier, alone: Identifier) -> None:
    """Print how often all labels are right, among languages that lid.176 knows."""
    names = {"nb": "no", "fil": "tl", "yue": "zh"}
    known = set(_lid(identifier.model, "x", 300))
    for name, which in (("combined", identifier), ("lid.176", alone)):
        right: list[bool] = []
        for row in rows:
            code = names.get(row.language, row.language)
            if code in known and held_out(row) and row.group != "long":
                right.append(identify(row.text, which)[0] == code)
        print(f"{name:10} right label {sum(right) / len(right):.3f} of {len(right)}")


def fit(rows: list[Row], identifier: Identifier) -> None:
    """Fit the logistic model on the first half; print FEATURES and INTERCEPT."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    features, english = [], []
    for row in rows:
        line = prepare(row.text)
        if held_out(row) or row.group == "long" or script_of(line) != "latin":
            continue
        lowered = line.lower()
        lid = _lid(identifier.model, lowered, 10)
        assert identifier.words is not None
        entries = evidence.lookup(identifier.words, lowered)
        words = evidence.word_evidence(identifier.words, entries)
        features.append(evidence.english_features(entries, words, lid, lowered))
        english.append(row.language == "en")
    x, y = np.array(features), np.array(english)
    mean, spread = x.mean(0), x.std(0)
    weight = np.where(y, (~y).sum() / y.sum(), 1.0)  # as if half were English
    model = LogisticRegression(C=0.01, max_iter=3000).fit((x - mean) / spread, y, weight)
    weights = model.coef_[0] / spread
    for name, value in zip(evidence.FEATURES, weights, strict=True):
        print(f'    "{name}": {value:.4f},')
    print(f"INTERCEPT = {model.intercept_[0] - weights @ mean:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder, or a saved parquet file")
    parser.add_argument("--save", type=Path, help="write the chosen strings as parquet")
    parser.add_argument("--fit", action="store_true", help="fit weights on the first half")
    arguments = parser.parse_args()
    if arguments.data.is_dir():
        readers = (read_stamps, read_cldr, read_catalogues, read_desktop_files)
        rows = choose({row for read in readers for row in read(arguments.data)})
    else:
        rows = [Row(**row) for row in pq.read_table(arguments.data).to_pylist()]
    if arguments.save:
        columns = zip(*rows, strict=True)
        pq.write_table(
            pa.table(dict(zip(Row._fields, map(list, columns), strict=True))), arguments.save
        )
    identifier = Language().setup(WorkerOptions())
    alone = identifier._replace(words=None)
    if arguments.fit:
        fit(rows, identifier)
    for name, which in (("lid.176", alone), ("combined", identifier)):
        start = time.process_time()
        report(rows, name, lambda text, which=which: identify(text, which)[0])  # type: ignore[misc]
        seconds = time.process_time() - start
        print(
            f"{name:10} {len([r for r in rows if held_out(r)]) / seconds:,.0f} texts per CPU second"
        )
    report_labels(rows, identifier, alone)
    report_confidence(rows, identifier)


if __name__ == "__main__":
    main()
