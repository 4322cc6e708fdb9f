"""Pages as a browser shows them: Chromium without a window."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from reported_runs import write_run

import haltwise
from haltwise.curves import Curves
from haltwise.curves.shipped import pretrained
from haltwise.report import write_explorer, write_replay, write_report
from haltwise.tasks import family

_NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in _NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="there is no Chromium to look at the pages with"
)

# Runs before the page: what goes wrong, and what is downloaded, is written down.
WATCH = """<script>
const seen = { errors: [], downloads: [] };
addEventListener("error", (event) => seen.errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => seen.errors.push(event.blockedURI));
for (const kind of ["error", "warn"]) {
  console[kind] = (...words) => seen.errors.push(words.join(" "));
}
URL.createObjectURL = (blob) => {
  blob.text().then((text) => seen.downloads.push(text));
  return "#";
};
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const report = async (look) => {
  await wait(300);
  try {
    Object.assign(seen, await look());
  } catch (error) {
    seen.errors.push(String(error.stack));
  }
  seen.requests = performance.getEntriesByType("resource").map(({ name }) => name)
    .filter((name) => !/^(data|blob):/.test(name));
  const shown = document.createElement("pre");
  shown.id = "seen";
  shown.textContent = JSON.stringify(seen);
  document.body.append(shown);
};
</script>"""

REPORT = """
const canvases = [...document.querySelectorAll(".canvas")];
const figure = (canvas) => canvas.querySelector("svg[tabindex]");
await wait(300);
const sizes = canvases.map((canvas) => {
  const box = figure(canvas).getBoundingClientRect();
  return [box.width, box.height, canvas.clientWidth];
});
const drawn = (canvas) => figure(canvas).querySelectorAll("path, circle, rect").length;
const toggles = [];
for (const canvas of canvases) {
  if (!canvas.querySelector(".legend button")) continue;
  const before = drawn(canvas);
  canvas.querySelector(".legend button:last-child").focus();
  document.activeElement.click();
  const [after, held] = [drawn(canvas), document.activeElement.closest(".canvas") === canvas];
  document.activeElement.click();
  toggles.push([before, after, drawn(canvas), held]);
}
const told = canvases.map((canvas) => {
  figure(canvas).focus();
  const say = (key) => {
    figure(canvas).dispatchEvent(new KeyboardEvent("keydown", { key }));
    return canvas.querySelector(".tip").textContent;
  };
  const found = [say("ArrowRight"), say("ArrowRight"), say("End"), say("Home")];
  say("Escape");
  return [...found, canvas.querySelector(".tip").hidden];
});
const box = figure(canvases[0]).getBoundingClientRect();
const move = { bubbles: true, clientX: box.left + 3, clientY: box.top + box.height / 2 };
const missed = canvases[0].querySelector(".tip");
figure(canvases[0]).dispatchEvent(new PointerEvent("pointermove", move));
const unmarked = missed.hidden;
const dot = figure(canvases[0]).querySelector("g circle").getBoundingClientRect();
Object.assign(move, { clientX: dot.left + dot.width / 2 + 2, clientY: dot.top + dot.height / 2 });
figure(canvases[0]).dispatchEvent(new PointerEvent("pointermove", move));
const pointed = [unmarked, missed.hidden];
for (const button of document.querySelectorAll("[data-csv]")) button.click();
const csv = document.querySelectorAll("[data-csv]").length;
for (let tries = 0; tries < 20 && seen.downloads.length < csv; tries += 1) await wait(50);
for (const button of document.querySelectorAll("[data-svg]")) button.click();
const ground = () => getComputedStyle(document.body).backgroundColor;
const first = ground();
document.getElementById("theme").click();
await wait(1000);
const overflow = document.documentElement.scrollWidth - innerWidth;
const grounds = [first, ground()];
return { sizes, toggles, told, pointed, width: innerWidth, overflow, grounds, csv };
"""

EXPLORER = """
const states = [];
for (const price of [0, byId("price").max]) {
  byId("price").value = price;
  byId("price").dispatchEvent(new Event("input"));
  await wait(100);
  const headline = byId("headline").textContent;
  states.push([+byId("price-shown").textContent, +byId("step").value, headline]);
}
byId("step").value = byId("step").max;
byId("step").dispatchEvent(new Event("input"));
const [bars] = embedded.figures.posterior.panels[0].series;
const sums = [bars.y.reduce((a, b) => a + b, 0)];
byId("play").click();
await wait(1200);
const played = +byId("step").value;
for (const button of document.querySelectorAll("[data-csv]")) button.click();
await wait(1000);
const canvases = [...document.querySelectorAll(".canvas")];
const drawn = canvases.map((canvas) => canvas.querySelectorAll("svg[tabindex] path").length > 5);
const overflow = document.documentElement.scrollWidth - innerWidth;
return { states, sums, played, drawn, overflow, width: innerWidth };
"""


def look(page: Path, script: str, folder: Path, width: int = 1280) -> dict[str, Any]:
    """What `script` returns on the page, and what went wrong there."""
    text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + WATCH, 1)
    end = f"<script>report(async () => {{ {script} }});</script></body>"
    watched = folder / "watched.html"
    watched.write_text(end.join(text.rsplit("</body>", 1)), encoding="utf-8")
    assert BROWSER is not None
    run = subprocess.run(
        [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--proxy-server=127.0.0.1:9",  # where nothing listens: nothing gets out
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},12000",  # all of the page is in view
            "--virtual-time-budget=60000", "--dump-dom", watched.as_uri(),
        ],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="seen">(.*?)</pre>', run.stdout, re.DOTALL)
    assert found, run.stdout[-500:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen


@pytest.fixture(scope="session")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("report"))
    return write_report(folder, folder / "report.html")


@pytest.mark.parametrize("width", [500, 1280])  # narrower windows Chromium refuses
def test_the_report_works_in_a_browser(width: int, report_page: Path, tmp_path: Path) -> None:
    seen = look(report_page, REPORT, tmp_path, width)
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert len(seen["sizes"]) >= 5
    for wide, high, card in seen["sizes"]:
        assert min(wide, high) >= 200
        assert abs(wide - card) <= 1
    assert len(seen["toggles"]) >= 3
    for before, after, again, held in seen["toggles"]:
        assert after < before == again
        assert held  # the keyboard stays where it was
    for first, second, last, home, hidden in seen["told"]:
        assert first
        assert home == first != last
        assert second != first
        assert hidden
    assert seen["pointed"] == [True, False]
    assert seen["width"] == width
    assert seen["overflow"] <= 0
    assert len(set(seen["grounds"])) == 2
    tables, drawings = seen["downloads"][: seen["csv"]], seen["downloads"][seen["csv"] :]
    assert len(tables) >= 6
    assert len(drawings) == len(seen["sizes"])
    for text in drawings:
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "var(" not in text
    for text in tables:
        header, *rows = text.strip().split("\r\n")
        assert len(rows) >= 1
        assert "," in header


def test_the_explorer_works_in_a_browser(tmp_path: Path) -> None:
    page = write_explorer(
        haltwise.load("regression-2d"),
        family("regression-2d"),
        tmp_path / "explore.html",
        name="regression-2d",
        family_name="regression-2d",
        num_problems=2,
        num_steps=12,
    )
    seen = look(page, EXPLORER, tmp_path, 500)
    assert seen["errors"] == []
    assert seen["requests"] == []
    (cheap, late, first), (dear, early, second) = seen["states"]
    assert cheap < dear
    assert late >= early
    assert first != second
    assert seen["sums"] == [pytest.approx(1, abs=1e-4)]
    assert 1 <= seen["played"] <= 4  # from the end it begins again
    assert seen["drawn"] == [True] * 4
    assert seen["overflow"] <= 0
    assert len(seen["downloads"]) == 4


REPLAY = """
const states = [];
for (const place of [0, byId("price").max]) {
  byId("price").value = place;
  byId("price").dispatchEvent(new Event("input"));
  states.push([byId("headline").textContent, byId("sentence").textContent]);
}
const buttons = [...document.querySelectorAll("[data-place]")].map((button) => {
  button.click();
  return [+byId("price").value, +button.dataset.place];
});
const drawn = [...document.querySelectorAll(".canvas svg[tabindex]")].length;
const overflow = document.documentElement.scrollWidth - innerWidth;
const controls = document.querySelector(".controls").offsetHeight;
return { states, buttons, drawn, overflow, controls };
"""


@pytest.mark.parametrize("width", [500, 1000])
def test_the_replay_works_in_a_browser(width: int, tmp_path: Path) -> None:
    losses = [[(3 - end) * 0.9**t + end for t in range(40)] for end in (0.5, 0.9, 2.0, 2.5)]
    curves = Curves.from_matrix(losses, target=1.0)
    names = [f"a-folder/of-long-names/{number}-{'0123456789' * 6}.log" for number in range(4)]
    curves = replace(curves, name=np.array(names))
    page = write_replay(
        pretrained(), curves, tmp_path / "replay.html", name="training-runs", runs_name="mine"
    )
    seen = look(page, REPLAY, tmp_path, width)
    assert seen["errors"] == seen["requests"] == []
    (free, all_go_on), (dear, all_end) = seen["states"]
    assert "goes on to its target" in free or "never given up" in free
    assert "0 are given up" in all_go_on
    assert "is given up after" in dear
    assert "4 are given up" in all_end
    assert seen["buttons"]
    assert all(moved == wanted for moved, wanted in seen["buttons"])
    assert seen["drawn"] == 4
    assert seen["overflow"] <= 0
    assert seen["controls"] < 250  # px; a long name of a run squeezes nothing


def test_the_watch_sees_requests_and_errors(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<html><head></head><body><img src='http://elsewhere.invalid/x.png'>"
        "<script>nothing.here()</script></body></html>"
    )
    seen = look(page, "await wait(500); return {};", tmp_path)
    assert any("nothing is not defined" in error for error in seen["errors"])
    assert seen["requests"] == ["http://elsewhere.invalid/x.png"]
