"""The built site keeps its promises: names, links, search, contrast, figures without a mouse.

    sphinx-build docs build/docs && pytest docs/checks/built_site.py

`make docs` does both. SITE is the directory of another build.
"""

import html
import json
import os
import posixpath
import re
import shutil
import subprocess
import threading
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from sphinx.util.inventory import InventoryFile

import haltwise

ROOT = Path(__file__).parents[2]
SITE = Path(os.environ.get("SITE", ROOT / "build/docs"))
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if path.relative_to(SITE).parts[0] not in ("_modules", "_static", "_sources")
)
PROSE = [page for page in PAGES if not page.startswith(("api/", "genindex", "py-modindex"))]


@cache
def text_of(page: str) -> str:
    return (SITE / page).read_text(encoding="utf-8")


@cache
def anchors(page: str) -> set[str]:
    return set(re.findall(r'\b(?:id|name)="([^"]+)"', text_of(page)))


def test_a_page_that_cites_programs_says_where_they_are() -> None:
    cited = [
        page
        for page in PROSE
        if re.search(r"\b(benchmarks|examples|experiments)/\w", text_of(page))
    ]
    assert len(cited) > 10
    assert [page for page in cited if "in the source repository" not in text_of(page)] == []


# ---------------------------------------------------------------------------- names, links, search


@pytest.fixture(scope="module")
def places() -> dict[str, list[str]]:
    """Where each name of Python is described, for every type that it has in the inventory."""
    inventory = InventoryFile.loads((SITE / "objects.inv").read_bytes(), uri="")
    found: dict[str, list[str]] = {}
    for kind, items in inventory.data.items():
        if kind.startswith("py:"):
            for name, item in items.items():
                found.setdefault(name, []).append(item.uri)
    return found


def test_every_public_name_is_described_once_at_that_name(places: dict[str, list[str]]) -> None:
    names = [f"haltwise.{name}" for name in haltwise.__all__ if name != "__version__"]
    assert {name: places.get(name) for name in names} == {
        name: [f"api/haltwise.html#{name}"] for name in names
    }


def test_every_name_of_a_public_package_leads_to_one_description(
    places: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    reference = pytest.importorskip("reference")
    names = reference.public_names()
    assert len(names) > 200
    for name in names:
        for path in filter(None, (name.path, name.place)):
            assert len(places.get(path, [])) == 1, (path, places.get(path))
            assert places[path][0].endswith(f"#{name.home}"), (path, places[path])


def test_every_internal_link_arrives() -> None:
    missing = []
    for page in PAGES:
        folder = posixpath.dirname(page)
        for link in set(re.findall(r'<[a-z]+\b[^>]*\b(?:href|src)="([^"]*)"', text_of(page))):
            target = urlsplit(html.unescape(link))
            if target.scheme or target.netloc:
                continue
            there = posixpath.normpath(posixpath.join(folder, unquote(target.path)))
            there = there if target.path else page
            anchor = unquote(target.fragment)
            arrives = (SITE / there).is_file() and (
                not anchor or not there.endswith(".html") or anchor in anchors(there)
            )
            if not arrives:
                missing.append(f"{page}: {link}")
    assert missing == []


def test_the_search_knows_terms_and_public_names() -> None:
    text = (SITE / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    documents = index["docnames"]

    def holding(word: str) -> set[str]:
        found = index["terms"].get(word, [])
        return {documents[place] for place in ([found] if isinstance(found, int) else found)}

    assert "glossary" in holding("captur") & holding("gain")
    assert {"solve", "LearnedOptimizer"} <= {entry[4] for entry in index["objects"]["haltwise"]}


# ------------------------------------------------------------------------------------------- looks


def test_figures_can_be_read_without_seeing_or_pointing() -> None:
    for page in PROSE:
        article = text_of(page).partition("<article")[2].partition("</article>")[0]
        for image in re.findall(r"<img\b[^>]*>", article):
            assert re.search(r'\balt="[^"]+"', image), f"{page}: {image}"
        for figure in re.findall(r'<div class="figure-place"[^>]*>', article):
            assert re.search(r'tabindex="0" role="img" aria-label="[^"]+"', figure), page


HARNESS = """<!doctype html><title>harness</title>
<iframe id="frame" style="width: 1280px; height: 1000px"></iframe>
<script>
const frame = document.getElementById("frame");
const loaded = (element, place) => new Promise((done) => {
  element.onload = done;
  element.src = place;
});
const look = async () => {
  const found = [];
  for (const page of PAGES) {
    await loaded(frame, "/" + page);
    const inner = frame.contentWindow;
    const script = inner.document.createElement("script");
    inner.document.head.append(script);
    await loaded(script, "/axe.min.js");
    for (const theme of ["light", "dark"]) {
      inner.document.body.dataset.theme = theme;
      const rules = theme === "light" ? RULES : ["color-contrast"];
      const results = await inner.axe.run(inner.document, {
        runOnly: { type: "rule", values: rules }, resultTypes: ["violations"],
      });
      for (const { id, nodes } of results.violations) {
        for (const { html, any } of nodes) {
          found.push([page, theme, id, html.slice(0, 160), any[0]?.message ?? ""]);
        }
      }
    }
  }
  return found;
};
look().catch((error) => [[String(error.stack)]])
  .then((found) => fetch("/found", { method: "POST", body: JSON.stringify(found) }));
</script>"""
RULES = (
    "color-contrast", "image-alt", "svg-img-alt", "link-name", "button-name", "label", "list",
    "document-title", "html-has-lang", "heading-order", "duplicate-id-aria",
    "aria-valid-attr-value", "scrollable-region-focusable", "frame-title", "tabindex",
)  # fmt: skip
# One page of each kind, those with tables and equations not the longest ones: they share a theme,
# and looking at all would take minutes.
LOOKED_AT = [
    f"{page}.html"
    for page in (
        "index",
        "recipes",
        "adaptive-examples",  # tables and figures
        "best-causal",  # equations
        "learn/one-problem",
        "api/haltwise.testing",
    )
]


class Handler(SimpleHTTPRequestHandler):
    """The site, the harness and axe; what the harness has found comes back."""

    found: list[list[str]] | None = None
    arrived = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/harness.html":
            text = HARNESS.replace("PAGES", json.dumps(LOOKED_AT))
            self.answer(text.replace("RULES", json.dumps(RULES)), "text/html")
        elif self.path == "/axe.min.js":
            import axe_core_python

            axe = Path(axe_core_python.__file__).with_name("axe.min.js")
            self.answer(axe.read_text(encoding="utf-8"), "text/javascript")
        else:
            super().do_GET()

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        Handler.found = json.loads(self.rfile.read(length))
        self.answer("", "text/plain")
        Handler.arrived.set()

    def answer(self, text: str, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words: Any) -> None:
        """Nothing."""


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium to look at the site with")
def test_contrast_and_structure_are_accessible_in_both_themes(tmp_path: Path) -> None:
    pytest.importorskip("axe_core_python")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = subprocess.Popen(
        [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path}", "--remote-debugging-port=0",
            f"http://127.0.0.1:{server.server_port}/harness.html",
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert Handler.arrived.wait(300), "the browser has not answered"
    finally:
        browser.terminate()
        browser.wait()
        server.shutdown()
        server.server_close()
    assert Handler.found == []
