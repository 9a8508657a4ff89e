"""The page: well-formed, offline, every link leads somewhere, nothing of a record gets out of its quotes."""

import itertools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from common import leaderboard_plot
from common.leaderboard import Paper, build
from common.leaderboard_page import page
from common.leaderboard_svg import Axes, curves_of, ticks
from common.records import read_runs
from common.runs import Table
from common.tests.leaderboard_parts import built

VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = """<script>alert("1")</script>&'"'"""             # a shell can read it, as it must a record's command


class Reader(HTMLParser):
    """Notes tags, attributes, ids and text; asserts that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        assert len({name for name, _ in attributes}) == len(attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def values(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_whole_and_needs_nothing_from_outside(tmp_path):
    _, where = built(tmp_path)
    text = where.read_text()
    read = Reader(text)
    assert text.startswith("<!DOCTYPE html>") and read.of("html") == [{"lang": "en"}]
    assert any(attributes.get("name") == "viewport" for attributes in read.of("meta"))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<img|<iframe|src=", text)
    policy = next(one["content"] for one in read.of("meta") if "http-equiv" in one)
    assert policy.startswith("default-src 'none'")
    ids = read.values("id")
    assert len(ids) == len(set(ids))


def test_every_link_leads_to_a_file_or_a_place_on_the_page(tmp_path):
    board, where = built(tmp_path)
    read = Reader(where.read_text())
    ids, links = set(read.values("id")), read.values("href")
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in ids
        else:
            assert not os.path.isabs(link) and (where.parent / unquote(link)).is_file(), link
    for reference in read.values("aria-labelledby"):
        assert set(reference.split()) <= ids
    files = {Path(link).name for link in links if not link.startswith("#")}
    assert files == {"run.json", "train.json", "eval-adarat.json", "flags-adarat.npz", "metrics.jsonl",
                     "leaderboard.md", "leaderboard.csv"}
    runs = sum(len(entry.runs) for group in board.groups for entry in group.entries)
    assert runs == 3 and sum(link.endswith("run.json") for link in links) == runs


def test_each_point_leads_to_its_record_curves_and_command(tmp_path):
    board, where = built(tmp_path, command="python train.py --seed 1")
    text, read = where.read_text(), Reader(where.read_text())
    for group in board.groups:
        for entry in group.entries:
            article = re.search(rf'<article id="{entry.key}".*?</article>', text, re.DOTALL).group()
            assert article.count("<code>python train.py --seed 1</code>") == len(entry.runs)
            assert article.count("train.json</a>") == len(entry.runs)
            assert article.count('<polyline class="curve') == 2 * len(entry.runs)
            points = [one for one in read.of("a") if one.get("href") == f"#{entry.key}" and "class" in one]
            assert len(points) == 1                                        # the one of the drawing
    drawn = re.search(r"<svg.*?</svg>", text, re.DOTALL).group()
    assert drawn.count('class="seed"') == 2 and "<desc" in drawn and "clean 80.0 %, AutoAttack 43.0 %" in drawn


def test_many_methods_have_a_line_each_that_leads_to_its_entry(tmp_path, monkeypatch):
    board, where = built(tmp_path)
    assert "class=\"lines\"" not in where.read_text()
    monkeypatch.setattr(leaderboard_plot, "CROWDED", 1)
    _, where = built(tmp_path / "crowded")
    text = where.read_text()
    drawn = re.search(r'<svg class="lines".*?</svg>', text, re.DOTALL).group()
    assert Reader(text).of("svg")[0]["class"] == "crowded"
    (group,) = board.groups
    middles = []
    for number, entry in enumerate(group.entries, start=1):
        link = re.search(rf'<a class="p\d+" href="#{entry.key}">.*?</a>', drawn, re.DOTALL).group()
        assert f"{entry.label} ({entry.paper}) {number}<" in link
        bars = [tuple(map(float, ends)) for ends in re.findall(r'x1="([\d.]+)" x2="([\d.]+)"', link)]
        filled, hollow = (float(re.search(rf'"{kind}" cx="([\d.]+)"', link)[1]) for kind in ("filled", "hollow"))
        assert bars[0][0] < filled < bars[0][1] and bars[1][0] < hollow < bars[1][1] and filled < hollow
        middles.append(hollow)
    assert max(middles) - min(middles) < 0.2                               # both are 80 % right


def test_it_can_be_read_without_seeing_and_without_script(tmp_path):
    _, where = built(tmp_path)
    text = where.read_text()
    read = Reader(text)
    assert text.index('class="skip"') < text.index("<h1>") and "main" in read.values("id")
    assert len(read.of("caption")) == len(read.of("table")) == 1
    assert all("scope" in one for one in read.of("th")) and "<button" not in text.partition("<script>")[0]
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(later <= here + 1 for here, later in itertools.pairwise(levels))
    assert "80.00" in "".join(read.words)


@pytest.mark.parametrize("where", ["label", "command", "device"])
def test_whatever_a_record_holds_is_text(tmp_path, where):
    if where == "device":
        _, path = built(tmp_path)
        for train in (tmp_path / "results").rglob("train.json"):
            record = json.loads(train.read_text())
            record["environment"]["device"] = EVIL
            train.write_text(json.dumps(record))
        papers = [Paper("one", Table(title="one", columns=(), rows=()))]
        path.write_text(page(build(papers, read_runs(tmp_path / "results", "one")), EVIL, path))
    else:
        _, path = built(tmp_path, **{where: EVIL})
    text = path.read_text()
    read = Reader(text)
    assert len(read.of("script")) == 1 and EVIL in "".join(read.words) and EVIL not in text


def test_runs_without_curves_and_without_effort_have_a_page(tmp_path):
    _, where = built(tmp_path, metrics=None)
    assert "The records hold no curves." in where.read_text()
    Reader(where.read_text())


def test_curves_are_the_metrics_in_percent(tmp_path):
    board, _ = built(tmp_path)
    entry = next(entry for entry in board.groups[0].entries if entry.paper == "one")
    found = curves_of(entry)
    assert list(found) == ["clean, test images", "attacked, test images"]
    rows = entry.runs[0].metrics
    assert found["clean, test images"][0] == [(row["epoch"], 100 * row["test_clean_accuracy"]) for row in rows]
    assert len(found["clean, test images"]) == 2


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 60, [0, 10, 20, 30, 40, 50, 60]), (28.8, 40, [30, 32, 34, 36,
                                                                                                     38, 40]),
                                                       (-2, 18, [0, 5, 10, 15]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1])])
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == expected


def test_axes_run_upwards():
    axes = Axes((0, 100), (0, 50))
    assert axes.x(0) < axes.x(100) <= 640 and axes.y(50) < axes.y(0) < 420
