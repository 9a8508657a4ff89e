"""Style sheet and script of the leaderboard's page, both inline."""

from collections.abc import Sequence

CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#777777")
STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #f2f2f2; --line: #ccc; --link: #0b57a4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181b; --soft: #23262b; --line: #444; --link: #8ab8ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
a { color: var(--link); }
a:focus-visible, button:focus-visible, [tabindex]:focus-visible { outline: 3px solid #E69F00; outline-offset: 2px; }
.skip { position: absolute; left: -999rem; }
.skip:focus { position: static; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
.warning { border-left: 4px solid #D55E00; background: var(--soft); padding: .5rem .75rem; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; }
svg { width: 100%; max-width: 44rem; height: auto; display: block; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--line); stroke-width: .6; }
svg .front { fill: none; stroke: var(--ink); stroke-dasharray: 2 4; stroke-width: 1.5; opacity: .6; }
svg .bar { stroke: currentColor; stroke-width: 1.5; opacity: .6; }
svg .dot { fill: currentColor; stroke: var(--paper); stroke-width: 1.5; }
svg .seed { fill: currentColor; }
svg a .number { fill: #fff; font-weight: bold; paint-order: stroke; stroke: #000; stroke-width: 2px; }
svg a:hover .dot, svg a:focus .dot { stroke: var(--ink); stroke-width: 3; }
svg a .dot { cursor: pointer; }
svg.crowded g .bar { opacity: .2; } svg.crowded .dot { r: 9px; } svg.crowded .number { font-size: 10px; }
svg .filled { fill: currentColor; } svg .hollow { fill: var(--paper); stroke: currentColor; stroke-width: 1.5; }
svg a:hover .name, svg a:focus .name { text-decoration: underline; }
svg .curve { fill: none; stroke: currentColor; stroke-width: 2; }
.keys { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .9rem; }
.key { display: inline-block; width: .9em; height: .9em; border-radius: 50%; background: currentColor;
  margin-right: .4em; vertical-align: -.1em; }
.key.line { height: 0; border-radius: 0; border-top: 2px dotted var(--ink); width: 1.5em; vertical-align: .25em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { text-align: left; padding: .35rem .3rem; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 8rem; } .whole { white-space: nowrap; }
td:nth-child(14) { min-width: 8.5rem; } td:nth-child(15) { min-width: 10rem; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: left; text-decoration: underline dotted; }
.badge { display: inline-block; min-width: 1.6em; text-align: center; border-radius: 1em; background: currentColor; }
.badge b { color: #fff; text-shadow: 0 0 2px #000, 0 0 2px #000; }
article { border: 1px solid var(--line); border-radius: .5rem; padding: 0 1rem 1rem; margin: 1rem 0; }
article, h2 { scroll-margin-top: .75rem; }
article:target { border-color: #E69F00; box-shadow: 0 0 0 2px #E69F00; }
dl { display: grid; grid-template-columns: minmax(8rem, 14rem) 1fr; gap: .25rem 1rem; }
dd { margin: 0; }
dt { font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .6rem; border-radius: .3rem;
  font-size: .85rem; margin: .25rem 0 .75rem; }
article h4 { margin: 1.25rem 0 .25rem; } article p { margin: .5rem 0 .25rem; }
button.copy { font: inherit; font-size: .85rem; margin-left: .5rem; color: var(--ink); background: var(--soft);
  border: 1px solid var(--line); border-radius: .3rem; cursor: pointer; }
/* A drawing is scaled down there: what it says is not. */
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } body { padding: .6rem; }
  svg text { font-size: 20px; } svg .dot { r: 18px; } svg a .number { transform: translateY(2px); }
  svg.crowded .dot { r: 12px; } svg.crowded .number { font-size: 14px; transform: none; }
  svg.lines { width: 44rem; max-width: none; } svg.lines text { font-size: 12px; } }
@media print { article, figure { break-inside: avoid; } }
"""
# Headers become buttons, and commands get one, only where there is script; nothing else needs it.
SCRIPT = """
document.querySelectorAll("pre").forEach(function (command) {
  var button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  command.previousElementSibling.appendChild(button);
  button.addEventListener("click", function () {
    var range = document.createRange(), chosen = window.getSelection();
    range.selectNodeContents(command);
    chosen.removeAllRanges();
    chosen.addRange(range);
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected: copy it with the keyboard";
  });
});
document.querySelectorAll("table").forEach(function (table) {
  var body = table.tBodies[0], heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach(function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", function () {
      var up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      var number = head.hasAttribute("data-number");
      Array.from(body.rows).map(function (row) {
        var text = row.cells[column].textContent.trim(), value = parseFloat(text);
        return { row: row, value: number ? (isNaN(value) ? -Infinity : value) : text.toLowerCase() };
      }).sort(function (a, b) {
        return (a.value < b.value ? -1 : a.value > b.value ? 1 : 0) * (up ? 1 : -1);
      }).forEach(function (one) { body.appendChild(one.row); });
    });
  });
});
"""


def style(papers: Sequence[str]) -> str:
    """The style sheet with the papers' colours (classes p0, p1, ...) and the curves' (c0, c1, ...)."""
    return STYLE + "\n".join(f".{letter}{number} {{ color: {colour}; }}"
                             for letter, several in (("p", papers), ("c", CURVES))
                             for number, colour in enumerate(several)) + "\n"
