"""Draw docs/figures/explorer.png: `sl.explore` in JupyterLab, in a real browser.

Run `python docs/explorer_figure.py`, where JupyterLab (`pip install '.[notebook]'`), playwright
(`pip install playwright`) and Chromium are installed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from playwright.sync_api import sync_playwright

FIGURE = Path(__file__).parent / "figures" / "explorer.png"
CELLS = (
    """import saliency_lab as sl
data = sl.load_dataset("digits")
models = {name: sl.load_model(f"digits/{name}") for name in ("standard", "at")}
study = sl.Study(models, data.test.sample(100, seed=0))
study.attribute(["saliency", "integrated_gradients"]).score("sparseness").attack("pgd", eps=0.1, steps=20)""",
    "sl.explore(study)",
)
PATIENCE = 120_000
"""Milliseconds that any step may take."""


def main() -> None:
    """Run the notebook in JupyterLab and take a picture of the explorer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "kernels", "kernels", "python3", "kernel.json")
        spec.parent.mkdir(parents=True)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec.write_text(json.dumps({"argv": command, "display_name": "Python", "language": "python"}))
        settings = Path(folder, "settings", "@jupyterlab", "apputils-extension")
        settings.mkdir(parents=True)
        news = json.dumps({"fetchNews": "false"})
        (settings / "notification.jupyterlab-settings").write_text(news)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python", "language": "python"}
        nbformat.write(notebook, Path(folder, "explorer.ipynb"))
        options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=figure"]
        places = {
            "JUPYTER_PATH": str(Path(folder, "kernels")),
            "JUPYTERLAB_SETTINGS_DIR": str(Path(folder, "settings")),
        }
        server = subprocess.Popen(
            ["jupyter", "lab", *options],
            cwd=folder,
            env=os.environ | places,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            photograph(f"http://127.0.0.1:{port}/doc/tree/explorer.ipynb?token=figure")
        finally:
            server.terminate()
            server.wait(timeout=30)


def photograph(url: str) -> None:
    """Open the notebook, run all of its cells, and save a picture of the explorer."""
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1500})
        page.set_default_timeout(PATIENCE)
        for _ in range(60):  # until the server answers
            try:
                page.goto(url)
                break
            except Exception:
                page.wait_for_timeout(1000)
        page.locator(".jp-Notebook .jp-Cell").first.click()
        page.locator(".lm-MenuBar-item").filter(has_text="Run").first.click()
        page.locator(".lm-Menu-itemLabel").filter(has_text="Run All Cells").first.click()
        page.locator(".jp-OutputArea-output .widget-select-multiple").first.wait_for()
        page.wait_for_timeout(3000)
        page.locator(".jp-OutputArea-output .widget-vbox").first.screenshot(path=FIGURE)
        browser.close()


if __name__ == "__main__":
    main()
