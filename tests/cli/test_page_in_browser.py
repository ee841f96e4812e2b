"""The page of `jaxunlearn compare` in a real browser, where one is installed."""

import re
import shutil
import subprocess

import pytest

from jaxunlearn.cli import app
from tests.cli.test_compare_verb import results, row, write

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
# Clicks on the head of a column, and says in which order the rows then are.
CLICK = """<script>
  const head = [...document.querySelectorAll("th")].find(th => th.textContent === %r);
  for (let i = 0; i < %d; i++) head.querySelector("button").click();
  document.body.dataset.order = [...document.querySelectorAll("tbody tr")].map(
    tr => tr.cells[0].textContent + "/" + tr.cells[1].textContent).join(" ");
  document.body.dataset.sorted = head.getAttribute("aria-sort");
  document.body.dataset.width = document.querySelector("img").naturalWidth;
</script></body>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no Chromium is installed"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    from PIL import Image

    Image.new("RGB", (30, 20)).save(folder / "figure.png")
    figure = (folder / "figure.png").read_bytes()
    evil = "<script>document.body.dataset.evil = 1</script>"
    first = write(folder / "a", results(seed=1, mine=row(3.0, ulira=0.9)), figure)
    other = write(folder / "b", results(seed=evil, mine=row(12.0)), figure)
    assert app.main(["compare", first, other, "--html", str(folder / "page.html")]) == 0
    return folder / "page.html"


def after(page, head, clicks, tmp_path):
    """Attributes of the page's body after some clicks."""
    file = tmp_path / "clicked.html"
    file.write_text(page.read_text().replace("</body>", CLICK % (head, clicks)))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run(
        [*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120
    )
    return dict(re.findall(r'data-(\w+)="([^"]*)"', re.findall("<body[^>]*>", done.stdout)[0]))


@pytest.mark.parametrize(
    ("head", "clicks", "order"),
    [
        ("KLOM forget", 1, "a/floor b/floor a/retrain b/retrain a/mine a/none b/none b/mine"),
        ("KLOM forget", 2, "b/mine a/none b/none a/mine a/retrain b/retrain a/floor b/floor"),
        ("method", 1, "a/floor b/floor a/mine b/mine a/none b/none a/retrain b/retrain"),
        ("run", 2, "b/none b/retrain b/mine b/floor a/none a/retrain a/mine a/floor"),
        ("U-LiRA", 2, "a/mine a/none a/retrain a/floor b/none b/retrain b/mine b/floor"),
    ],
)
def test_a_click_on_a_head_sorts(head, clicks, order, page, tmp_path):
    said = after(page, head, clicks, tmp_path)
    assert said["order"].split()[:8] == order.split()
    assert said["sorted"] == ("ascending", "descending")[clicks - 1]
    assert said["width"] == "30" and "evil" not in said
