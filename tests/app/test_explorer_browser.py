"""The explorer in a real browser: headless Chromium opens JupyterLab, runs the notebook, and does what a person would.
`make test-browser` installs what it needs."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from gradcheck.models.ddpm import DDPM

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "results" / "screenshots"
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 120_000      # ms; the test waits for things to happen, it does not say how fast
STEPS = int(os.environ.get("EXPLORER_STEPS", 16))     # of the run that is awaited


@pytest.fixture
def lab(tmp_path):
    "The address of a JupyterLab of its own, on a folder that holds a copy of the notebook."
    root, home = tmp_path / "root", tmp_path / "home"
    root.mkdir()
    shutil.copy(ROOT / "nbs" / "6_app" / "05_explorer.ipynb", root)
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    folders = dict(
        JUPYTER_CONFIG_DIR="config",
        JUPYTER_DATA_DIR="data",
        JUPYTER_RUNTIME_DIR="runtime",
        JUPYTERLAB_SETTINGS_DIR="settings",
        JUPYTERLAB_WORKSPACES_DIR="workspaces",
        IPYTHONDIR="ipython",
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                f"--port={port}",
                "--ServerApp.port_retries=0",
                f"--ServerApp.root_dir={root}",
                "--IdentityProvider.token=open",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=root,
            env=os.environ | {k: str(home / v) for k, v in folders.items()} | {"PYTHONPATH": str(ROOT)},
        )
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{url}/api/status?token=open", timeout=5).close()
                    break
                except OSError: time.sleep(0.25)
            else: pytest.fail((tmp_path / "lab.log").read_text(encoding="utf-8"))
            yield f"{url}/lab/tree/05_explorer.ipynb?token=open", root
        finally:
            server.terminate()
            try: server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


@pytest.fixture
def page():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            context = chromium.new_context(
                viewport=dict(width=1280, height=1420), permissions=["clipboard-read", "clipboard-write"]
            )
            context.set_default_timeout(PATIENCE)
            page = context.new_page()
            yield page
            photograph(page, "end")      # where the test ended, be it well or not
        finally: chromium.close()


def photograph(page, name):
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"explorer_{name}.png")


def menu(page, bar, *items):
    page.locator(".lm-MenuBar-item", has_text=bar).first.click()
    for item in items: page.locator(".lm-Menu-item").filter(has=page.get_by_text(item, exact=True)).click()


def test_a_person_explores(lab, page, record_property):
    (address, root), seconds, complaints = lab, {}, []
    page.on("pageerror", lambda e: complaints.append(str(e)))
    # which kernel: this one
    page.add_locator_handler(page.locator(".jp-Dialog"), lambda: page.locator(".jp-Dialog .jp-mod-accept").click())
    page.goto(address)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()

    # Run all, and the first picture
    started = time.monotonic()
    menu(page, "Run", "Run All Cells")
    ui = page.locator(".gc-explorer")
    pictures, curve, status = ui.locator(".gc-board img"), ui.locator("path.gc-curve").first, ui.locator(".gc-status")
    pictures.first.wait_for()
    assert page.evaluate(
        "[...document.querySelectorAll('.gc-board img')].every(i => i.complete && i.naturalWidth === 64)"
    )
    seconds["run all to first picture"] = time.monotonic() - started
    noise = pictures.nth(0).get_attribute("src")
    # A and B start from the same noise
    assert pictures.count() == 9 and pictures.nth(3).get_attribute("src") == noise and curve.count() == 0
    page.evaluate("document.querySelector('.gc-explorer').scrollIntoView()")
    photograph(page, "first")

    # every control has a name that can be seen; Tab leads to Sample, Enter presses it
    labels = ui.locator(".widget-label:visible").all_inner_texts()
    for name in (
        "try",
        "classifier",
        "target",
        "where",
        "stabilizer",
        "scale",
        "steps",
        "seed",
        "images",
        "step",
        "show image",
    ):
        assert name in labels, name
    page.wait_for_function("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status !== 'busy'")
    steps = ui.get_by_label("steps", exact=True)
    steps.fill(str(STEPS))
    steps.press("Tab")
    for _ in range(12):
        if page.evaluate("document.activeElement.innerText") == "Sample": break
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Sample"
    page.evaluate(
        "window.gap = 0; window.beat = performance.now(); setInterval(() => { const now = performance.now(); gap = "
        "Math.max(gap, now - beat); beat = now }, 50); 0"
    )
    page.keyboard.press("Enter")

    # pictures change and the curve grows, step by step
    curve.wait_for(state="attached")
    lengths, sources = set(), set()
    while f"after {STEPS} of {STEPS}" not in (said := status.inner_text()):
        lengths.add(len(curve.get_attribute("d")))
        sources.add(pictures.nth(1).get_attribute("src"))
        page.wait_for_timeout(50)
    assert len(lengths) > 2 and len(sources) > 2 and noise not in sources, said
    seconds["longest silence of the page while sampling"] = page.evaluate("gap") / 1000
    assert curve.get_attribute("d").count("L") == STEPS - 2  # no cosine for the first step
    assert page.evaluate(
        "document.querySelector('.gc-screen').scrollWidth <= document.querySelector('.gc-screen').clientWidth + 1"
    )

    # scrub with the keyboard: to the noise, to the third step, to where it was
    handle, last = ui.locator(".noUi-handle").first, pictures.nth(1).get_attribute("src")

    def shows(t):
        page.wait_for_function("t => document.querySelector('.gc-board').innerText.includes(`t = ${t}`)", arg=t)

    handle.focus()
    page.keyboard.press("Home")
    page.wait_for_function("src => document.querySelectorAll('.gc-board img')[0].src === src", arg=noise)
    for _ in range(3): page.keyboard.press("ArrowRight")
    times = [t for t, _ in DDPM().timesteps(STEPS)]
    shows(times[2])
    photograph(page, "light")
    for _ in range(STEPS - 3): page.keyboard.press("ArrowRight")
    shows(times[-1])
    page.wait_for_function("src => document.querySelectorAll('.gc-board img')[1].src === src", arg=last)

    # the code, in the clipboard; the files
    ui.get_by_role("button", name="Copy as code").click()
    ui.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == ui.locator(".gc-code pre").text_content()
    ui.get_by_role("button", name="Save").click()
    page.wait_for_function("document.querySelector('.gc-status').innerText.startsWith('Saved')")
    folder = Path(status.inner_text().split(" in ")[-1])
    assert folder.is_relative_to(root / "results" / "explorer") and {p.name for p in folder.iterdir()} == {
        f"step_{STEPS}.png",
        "film.gif",
        "run.safetensors",
        "run.json",
    }

    # the dark theme
    menu(page, "Settings", "Theme", "JupyterLab Dark")
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    page.evaluate("document.querySelector('.gc-explorer').scrollIntoView()")
    page.wait_for_timeout(500)
    photograph(page, "dark")
    assert page.evaluate("getComputedStyle(document.querySelector('.gc-chart text')).fill") != "rgb(34, 34, 34)"

    # a longer run: look back while it goes on, then stop it
    steps.fill("200")
    steps.press("Tab")
    ui.get_by_role("button", name="Sample").click()
    page.wait_for_function(
        "document.querySelector('.gc-status').innerText.startsWith('Step') && "
        "+document.querySelector('.gc-status').innerText.split(' ')[1] > 2"
    )
    handle.focus()
    page.keyboard.press("Home")
    # x_T again, while sampling
    page.wait_for_function("src => document.querySelectorAll('.gc-board img')[0].src === src", arg=noise)
    started = time.monotonic()
    ui.get_by_role("button", name="Stop").click()
    page.wait_for_function("document.querySelector('.gc-status').innerText.startsWith('Stopped')")
    seconds["click to stop"] = time.monotonic() - started
    reached = int(status.inner_text().split()[2])
    assert 2 < reached < 200
    page.wait_for_timeout(1500)
    assert int(status.inner_text().split()[2]) == reached and ui.get_by_role("button", name="Stop").is_disabled()

    assert complaints == []
    for name, value in seconds.items(): record_property(name, round(value, 2))
    (ROOT / "results" / "explorer_timing.json").write_text(
        json.dumps({k: round(v, 2) for k, v in seconds.items()}, indent=1) + "\n"
    )
    print(seconds)
