"""The leaderboard's page in a headless Chromium: drawn whole, nothing fetched, every point leads to its record."""

import json
import re
from urllib.parse import unquote, urlsplit

import pytest

from common.environment import ROOT
from common.tests import browser
from common.tests.leaderboard_parts import built

pytestmark = pytest.mark.slow
OURS = ROOT / "results" / "leaderboard" / "index.html"
COMMAND = "python train.py --seed 1 --name 'a  b'"


@pytest.fixture(scope="module")
def window():
    with browser.browser() as window:
        yield window


@pytest.fixture
def made(tmp_path, window):
    """A page of two papers, open; and its board."""
    board, path = built(tmp_path, command=COMMAND)
    show(window, path)
    return board, path


def show(window, path):
    window.tell("Emulation.clearDeviceMetricsOverride")
    window.tell("Emulation.setEmulatedMedia", features=[])
    window.open("about:blank")
    window.complaints(), window.asked_for()
    window.open(path.as_uri())


def keys(board):
    return [entry.key for group in board.groups for entry in group.entries]


def test_every_row_and_point_is_drawn(made, window):
    board, _ = made
    assert window.run("return document.querySelectorAll('tbody tr').length") == len(keys(board)) == 2
    shown = window.run("""return Array.from(document.querySelectorAll('svg a'), function (point) {
        var plot = point.ownerSVGElement.getBoundingClientRect(), dot = point.querySelector('.dot');
        var box = dot.getBoundingClientRect();
        return [point.getAttribute('href'), box.width > 10, box.left > plot.left && box.right < plot.right
                && box.top > plot.top && box.bottom < plot.bottom, getComputedStyle(dot).fill]; })""")
    assert sorted(href for href, *_ in shown) == sorted(f"#{key}" for key in keys(board))
    assert all(large and inside for _, large, inside, _ in shown) and len({colour for *_, colour in shown}) == 2
    assert window.complaints() == []


def test_a_point_leads_to_its_record(made, window):
    board, _ = made
    for key in keys(board):
        window.run("window.scrollTo(0, 0)")
        window.click(f'svg a[href="#{key}"] .number')
        assert window.run("return location.hash") == f"#{key}"
        top, height = window.run("return [document.querySelector('article:target').getBoundingClientRect().top, "
                                 "innerHeight]")
        assert 0 <= top < height
        assert window.run("return document.querySelectorAll('article:target .curve').length") >= 2
        window.click("article:target a[href$='run.json']")
        address = window.run("return location.href")
        record = json.loads(window.run("return document.body.innerText"))
        assert address.endswith(f"/{record['paper']}/{record['dataset']}/{record['run']}/run.json")
        window.back()
    assert window.complaints() == []


def test_points_and_rows_are_reached_by_keyboard(made, window):
    key = keys(made[0])[0]
    window.type(f'svg a[href="#{key}"]', browser.ENTER)
    assert window.run("return location.hash") == f"#{key}"
    window.click("article:target p:last-child a")                          # back to its group
    assert window.run("return document.querySelector(':target').tagName") == "H2"
    window.click(f'tbody a[href="#{key}"]')
    assert window.run("return document.querySelector('article:target').id") == key


def test_nothing_is_asked_for_but_the_page(made, window, tmp_path):
    asked = [*window.asked_for(), *[one for _ in [window.click("tbody a")] for one in window.asked_for()]]
    assert {urlsplit(address)._replace(fragment="").geturl() for address in asked} == {made[1].as_uri()}
    # The same eyes see a request where there is one.
    leaky = tmp_path / "leaky.html"
    leaky.write_text('<!DOCTYPE html><title>x</title><img src="http://example.invalid/x.png">')
    show(window, leaky)
    assert "http://example.invalid/x.png" in window.asked_for()
    # Nor can one be made: the page's policy stops it.
    text = made[1].read_text()
    made[1].write_text(text.replace("</main>", '<img src="http://example.invalid/x.png"></main>'))
    show(window, made[1])
    assert any("Content Security Policy" in line for line in window.complaints())
    made[1].write_text(text)


def test_headers_sort_the_rows(made, window):
    def column(number):
        return window.run("return Array.from(document.querySelectorAll('tbody tr'), "
                          f"function (row) {{ return row.cells[{number}].textContent; }})")

    for number in (2, 5):                                                  # words, then numbers
        window.click(f"thead th:nth-child({number + 1}) button")
        up = column(number)
        assert window.run(f"return document.querySelectorAll('thead th')[{number}].getAttribute('aria-sort')"
                          ) == "ascending"
        window.click(f"thead th:nth-child({number + 1}) button")
        assert column(number) == up[::-1] and len(set(up)) == 2
        value = (lambda text: float(re.match(r"[\d.]+", text)[0])) if number == 5 else str.lower
        assert up == sorted(up, key=value)


def test_a_command_is_copied_as_it_stands(made, window):
    window.tell("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    window.click("article button.copy")
    assert window.run("return document.querySelector('button.copy').textContent") == "Copied"
    window.run("var box = document.createElement('textarea'); box.id = 'box'; document.body.prepend(box)")
    window.type("#box", browser.CONTROL + "v")
    assert window.run("return document.querySelector('#box').value") == COMMAND


def test_it_fits_a_phone(made, window):
    window.tell("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    assert window.run("return document.documentElement.scrollWidth") <= 390
    drawn = window.run("""return Array.from(document.querySelectorAll('svg text'), function (text) {
        return parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a; })""")
    assert min(drawn) >= 9.5                                                # pixels, after the drawing is scaled


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_by_day_and_night(made, window, scheme):
    window.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    ink, paper, link = window.run("""var body = getComputedStyle(document.body);
        return [body.color, body.backgroundColor, getComputedStyle(document.querySelector('tbody a')).color]""")
    assert (luminance(paper) > 0.5) == (scheme == "light")
    assert contrast(ink, paper) > 7 and contrast(link, paper) > 4.5


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_page_of_this_repository(window):
    show(window, OURS)
    entries = sorted(window.run("return Array.from(document.querySelectorAll('article'), "
                                "function (article) { return '#' + article.id; })"))
    points, rows, lines, pairs = window.run(
        "return ['.crowded a, .roomy a', '.methods tbody a', '.lines a', '.differences tbody a'].map(function (css) { "
        "return Array.from(document.querySelectorAll(css), function (a) { return decodeURIComponent(a.hash || "
        "a.getAttribute('href')); }); })")
    assert entries and len(set(entries)) == len(entries)
    assert sorted(points) == sorted(rows) == entries                       # each method once in drawing and table
    crowded = window.run("return Array.from(document.querySelectorAll('svg.crowded'), function (svg) { "
                         "return svg.querySelectorAll('a').length; })")
    assert len(lines) == len(set(lines)) == sum(crowded) and set(lines) <= set(entries)
    assert pairs and set(pairs) <= set(entries)
    assert window.run("return document.querySelectorAll('tbody tr').length") == len(rows) + len(pairs)
    links = window.run("return Array.from(document.querySelectorAll('a'), "
                       "function (a) { return new URL(a.getAttribute('href'), location).href; })")
    for link in links:
        parts = urlsplit(link)
        assert parts.scheme == "file", link
        if parts.fragment:
            assert window.run("return document.getElementById(arguments[0]) !== null", unquote(parts.fragment)), link
        else:
            assert (ROOT / unquote(parts.path)).is_file(), link
    # Where points lie on top of each other, each can still be reached by its row.
    for key in window.run("return Array.from(document.querySelectorAll('tbody a'), function (a) { return a.hash; })"):
        window.run("location.hash = arguments[0]", key)
        assert window.run("return document.querySelector('article:target a[href$=\"train.json\"]') !== null"), key
    assert all(urlsplit(address).scheme == "file" for address in window.asked_for())
    assert window.complaints() == []
