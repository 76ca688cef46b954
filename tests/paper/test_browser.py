"""The page in headless Chromium, on a laptop's screen and a phone's. `make test-browser` installs what it needs."""
import shutil
from pathlib import Path

import pytest
from test_claims import evidence

from gradcheck.paper.claims import CLAIMS
from gradcheck.runs.verdicts import decide
from gradcheck.core import write_bytes
from gradcheck.paper.page import write_page
from gradcheck.paper.reproduce import reproduce

pytestmark = pytest.mark.browser
ARTIFACTS = Path(__file__).parents[2] / "results" / "screenshots"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page_file(tmp_path, shared_cache):
    "A page with two figures of the smoke preset, and a claim in each verdict, planted."
    reproduce(["figure_3", "figure_4"], "smoke", tmp_path, report=lambda text: None)
    folder, verdicts = tmp_path / "smoke", ["holds", "does not hold", "undecided"]
    planted = decide(CLAIMS[:1] * 3, evidence(0.5, 0.4)).assign(verdict=verdicts, beside="something to know " * 16)
    write_bytes(folder / "claims.csv", planted.to_csv(index=False).encode("utf-8"))
    sidecar = (folder / "figure_3.json").read_text(encoding="utf-8").replace('"figure_3"', '"claims"')
    write_bytes(folder / "claims.json", sidecar.encode("utf-8"))
    write_bytes(folder / "claims.png", (folder / "figure_3.png").read_bytes())
    return write_page(folder)


@pytest.mark.parametrize("name, width, height", [("laptop", 1280, 900), ("phone", 390, 844)])
def test_the_page_stands_alone_and_fits(browser, page_file, name, width, height):
    page, requests, complaints = browser.new_page(viewport=dict(width=width, height=height)), [], []
    page.on("request", lambda r: requests.append(r.url))
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.goto(page_file.as_uri())
    assert [r for r in requests if r != page_file.as_uri() and not r.startswith("data:")] == [] and complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # no sideways scrolling
    assert (
        page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 500)")
        and page.locator("img").count() == 3
    )
    verdicts = page.locator("td.verdict")
    assert verdicts.all_inner_texts() == ["holds", "does not hold", "undecided"] and all(
        verdicts.nth(i).is_visible() for i in range(3)
    )
    for link in page.locator("a").all(): assert (page_file.parent / link.get_attribute("href")).is_file()
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"page_{name}.png", full_page=True)
