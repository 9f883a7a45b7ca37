"""The page in a real browser: no error, nothing asked for, and what one can do with mouse and keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuronllm.cli.demo import demonstrate
from neuronllm.page.page import write_page

from .chromium import Chromium, find_chromium
from .comparisons import comparison, timings

PROGRAM = find_chromium()
READY = "document.documentElement?.dataset.ready === 'yes'"
FACTS = comparison("small")
DEMONSTRATED = "quick,search=12,validation=8,test=12,elsewhere=4,judged=2,effects=2000,controls=3,curve_controls=1"
# Where on the screen the mark of the first good neuron is, and a bin without a card.
MAP = """
  const plot = document.querySelector('[data-figures=maps] .plot'), { xaxis, yaxis } = plot._fullLayout;
  plot.scrollIntoView({ block: 'center' });
  const box = plot.getBoundingClientRect(), [image, good] = plot.data;
  const at = (x, y) => [box.x + xaxis._offset + xaxis.d2p(x), box.y + yaxis._offset + yaxis.d2p(y)];"""
MARK = f"(() => {{ {MAP} return {{ mark: at(good.x[0], good.y[0]), card: good.customdata[0] }}; }})()"
PLACES = (
    f"(() => {{ {MAP}"
    + """
  const taken = new Set(plot.data.slice(1).flatMap((t) => t.x.map((x, n) => `${t.y[n]} ${x}`)));
  const free = [...Array(60).keys()].find((x) => [0, 1, 2].every((d) => !taken.has(`layer 2 ${x + d}`))) + 1;
  return { mark: at(good.x[0], good.y[0]), card: good.customdata[0], free: at(free, 'layer 2'), name: free };
})()"""
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium found (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "comparison.json").write_text(json.dumps(FACTS))
    (folder / "timings.json").write_text(json.dumps(timings(FACTS)))
    write_page(folder)
    return folder


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert PROGRAM is not None
    with Chromium(PROGRAM, tmp_path_factory.mktemp("home")) as chromium:
        yield chromium


@pytest.fixture
def browser(chromium: Chromium, folder: Path) -> Iterator[Chromium]:
    """The page freshly opened; afterwards it has complained of nothing and asked for nothing."""
    chromium.errors.clear()
    chromium.requests.clear()
    chromium.look(1280)
    chromium.ask("Page.navigate", url="about:blank")
    chromium.open(folder / "report.html")
    chromium.wait(READY)
    yield chromium
    assert chromium.errors == []
    asked = {url.partition("#")[0] for url in chromium.requests if not url.startswith(("data:", "blob:"))}
    assert asked <= {"about:blank", (folder / "report.html").as_uri()}
    assert chromium.evaluate("window.broken") is None  # no text of others was run


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `neuronllm demo`, of two tasks and few questions."""
    folder = tmp_path_factory.mktemp("demo") / "neuronllm-demo"
    demonstrate(folder, ["facts", "sentiment"], DEMONSTRATED, progress=False)
    return folder


def shown(browser: Chromium, table: str, column: int) -> list[str]:
    rows = f"[...document.querySelectorAll('#table-{table} tbody tr')].filter((row) => row.checkVisibility())"
    return browser.evaluate(f"{rows}.map((row) => row.cells[{column}].textContent.trim())")


def head(table: str, column: int) -> str:
    return f"document.querySelectorAll('#table-{table} th')[{column}]"


def test_a_table_is_sorted_by_mouse_and_by_keyboard(browser: Chromium) -> None:
    accuracies = [edit["accuracy"] for edit in FACTS["edits"]] + [task["base"]["accuracy"] for task in FACTS["tasks"]]
    button = f"{head('edits', 4)}.querySelector('button')"
    browser.evaluate(f"{button}.scrollIntoView()")
    place = browser.evaluate(f"(({{ x, y }}) => [x + 5, y + 5])({button}.getBoundingClientRect())")
    browser.click(*place)
    assert browser.evaluate(f"{head('edits', 4)}.getAttribute('aria-sort')") == "descending"
    assert shown(browser, "edits", 4) == [f"{value:.3f}" for value in sorted(accuracies, reverse=True)]
    browser.evaluate(f"{button}.focus()")
    browser.press("Enter")
    assert browser.evaluate(f"{head('edits', 4)}.getAttribute('aria-sort')") == "ascending"
    assert shown(browser, "edits", 4) == [f"{value:.3f}" for value in sorted(accuracies)]
    browser.press("Tab")
    browser.press("Tab")
    browser.press(" ")  # two columns on: the change of accuracy, which a model without an edit does not have
    assert browser.evaluate(f"{head('edits', 4)}.getAttribute('aria-sort')") == "none"
    assert browser.evaluate(f"{head('edits', 6)}.getAttribute('aria-sort')") == "descending"
    assert shown(browser, "edits", 6)[-2:] == ["n/a", "n/a"]


def test_tables_are_paged_and_filtered(browser: Chromium) -> None:
    changed = sum(len(edit["examples"]) for edit in FACTS["edits"])
    told = "document.querySelector('#table-changed output').textContent"
    assert browser.evaluate(told) == f"1 to 20 of {changed}" and len(shown(browser, "changed", 0)) == 20
    browser.evaluate("document.querySelector('#table-changed [data-step=\"1\"]').click()")
    assert browser.evaluate(told) == f"21 to 40 of {changed}"
    choose = "document.querySelector('#table-changed [data-filter=edit]')"
    browser.evaluate(f"{choose}.value = 'tuned'; {choose}.dispatchEvent(new Event('change'))")
    assert set(shown(browser, "changed", 2)) == {"tuned"}


def test_a_click_on_the_map_opens_the_card_of_the_neuron(browser: Chromium) -> None:
    places = browser.evaluate(PLACES)
    card = FACTS["cards"][places["card"]]
    title = f"Layer {card['layer']}, neuron {card['index']}"
    browser.evaluate("document.getElementById('card').innerHTML = ''")
    browser.click(*places["mark"])
    browser.wait("document.querySelector('#card h3') !== null")
    assert browser.evaluate("document.querySelector('#card h3').textContent") == title
    assert browser.evaluate("document.activeElement.textContent") == title
    assert browser.evaluate("location.hash") == f"#card-{places['card']}"

    places = browser.evaluate(PLACES)
    browser.click(*places["free"])
    browser.wait("document.getElementById('told').textContent !== ''")
    said = browser.evaluate("document.getElementById('told').textContent")
    assert said == f"layer 2, neuron {places['name']}: no card here, only the strongest neurons have one."


def test_a_card_is_opened_from_the_list_and_by_its_link(browser: Chromium, folder: Path) -> None:
    browser.evaluate("document.querySelector('[data-card=\"5\"]').focus()")
    browser.press("Enter")
    card = FACTS["cards"][5]
    title = f"Layer {card['layer']}, neuron {card['index']}"
    assert browser.evaluate("document.querySelector('#card h3').textContent") == title
    current = "[...document.querySelectorAll('[aria-current]')].map((b) => b.dataset.card)"
    assert browser.evaluate(current) == ["5"]
    browser.evaluate("location.hash = '#card-3'")
    browser.wait(f"document.querySelector('#card h3').textContent !== {json.dumps(title)}")
    assert browser.evaluate(current) == ["3"]
    browser.evaluate("window.old = true")
    browser.ask("Page.reload")
    browser.wait(f"!window.old && {READY}")
    assert browser.evaluate(current) == ["3"]


def test_the_matrices_of_one_method_are_shown_at_a_time(browser: Chromium) -> None:
    box = "document.querySelector('#tasks [data-choice]')"
    seen = f"[...{box}.querySelectorAll('.choice')].map((group) => group.checkVisibility())"
    methods = [found["method"] for found in FACTS["across_tasks"]]
    assert browser.evaluate(f"[...{box}.querySelectorAll('option')].map((one) => one.textContent)") == methods
    assert browser.evaluate(seen) == [True, False, False]
    browser.evaluate(
        f"{box}.querySelector('select').selectedIndex = 2;"
        f"{box}.querySelector('select').dispatchEvent(new Event('change'))"
    )
    assert browser.evaluate(seen) == [False, False, True]
    shown = browser.evaluate(f"[...{box}.querySelectorAll('.choice')][2].querySelector('td.number').textContent.trim()")
    change = FACTS["across_tasks"][2]["transfer"][0]["change"][0][0]
    assert shown.replace("\N{MINUS SIGN}", "-") == f"{change:+.3f}"


def test_neurons_are_chosen_by_method(browser: Chromium) -> None:
    choose = "document.querySelector('#table-neurons [data-filter=method]')"
    browser.evaluate(f"{choose}.value = 'relp'; {choose}.dispatchEvent(new Event('change'))")
    mine = [said for card in FACTS["cards"] for said in card["methods"] if said["method"] == "relp"]
    assert shown(browser, "neurons", 2) == ["relp"] * len(mine) and mine


def test_figures_follow_the_choice_and_send_nothing(browser: Chromium) -> None:
    figure = "document.querySelector('[data-figures=curves]')"
    assert browser.evaluate(f"{figure}.querySelector('.plot').getAttribute('aria-label')").startswith(
        "Accuracy on facts"
    )
    pick = f"{figure}.querySelector('select')"
    browser.evaluate(f"{pick}.selectedIndex = 1; {pick}.dispatchEvent(new Event('change'))")
    browser.wait(f"{figure}.querySelector('.plot').data.some((trace) => trace.fill)")
    buttons = "[...document.querySelectorAll('.modebar-btn')].map((button) => button.dataset.title)"
    assert set(browser.evaluate(buttons)) == {
        "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes", "Download plot as a PNG",
    }  # fmt: skip
    picture = browser.evaluate(f"Plotly.toImage({figure}.querySelector('.plot'), {{ format: 'png' }})")
    assert picture.startswith("data:image/png;base64,")


def test_the_page_of_the_demonstration(chromium: Chromium, demonstration: Path, tmp_path: Path) -> None:
    facts, page = json.loads((demonstration / "comparison.json").read_text()), demonstration / "report.html"
    chromium.errors.clear()
    chromium.requests.clear()
    for width in (1280, 400):
        chromium.look(width)
        chromium.ask("Page.navigate", url="about:blank")
        chromium.open(page)
        chromium.wait(READY)
        assert chromium.evaluate("document.documentElement.scrollWidth") == width
        chromium.screenshot(tmp_path / f"{width}.png")
        assert (tmp_path / f"{width}.png").stat().st_size > 50_000

        chromium.evaluate(f"{head('edits', 4)}.querySelector('button').click()")
        accuracies = [edit["accuracy"] for edit in facts["edits"]] + [t["base"]["accuracy"] for t in facts["tasks"]]
        assert shown(chromium, "edits", 4) == [f"{value:.3f}" for value in sorted(accuracies, reverse=True)]

        chromium.evaluate("document.getElementById('card').innerHTML = ''")
        place = chromium.evaluate(MARK)
        chromium.click(*place["mark"])
        chromium.wait("document.querySelector('#card h3') !== null")
        card = facts["cards"][place["card"]]
        title = chromium.evaluate("document.querySelector('#card h3').textContent")
        assert title == f"Layer {card['layer']}, neuron {card['index']}"
    assert chromium.errors == []
    asked = {url.partition("#")[0] for url in chromium.requests if not url.startswith(("data:", "blob:"))}
    assert asked - {"about:blank"} == {page.as_uri()}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_screen(browser: Chromium, folder: Path, tmp_path: Path, width: int, dark: bool) -> None:
    browser.look(width, dark=dark)
    browser.open(folder / "report.html")
    browser.wait(READY)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    ink = browser.evaluate("document.querySelector('.plot .xtick text').style.fill")
    assert ink == ("rgb(227, 231, 237)" if dark else "rgb(28, 33, 43)")
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_a_table_that_goes_on_has_a_shadow_at_that_side(browser: Chromium, folder: Path, tmp_path: Path) -> None:
    """Its edges in a picture of the screen, before and after it is scrolled to its end: the shadow changes sides."""
    images = pytest.importorskip("matplotlib.image")
    browser.look(400)
    browser.open(folder / "report.html")
    browser.wait(READY)
    table, found = "document.querySelector('#table-edits .scroll')", []
    for number, scrolled in enumerate((0, 10_000)):
        browser.evaluate(f"{table}.scrollIntoView(); {table}.scrollLeft = {scrolled}")
        left, width = browser.evaluate(f"(({{ x, width }}) => [x, width])({table}.getBoundingClientRect())")
        y = browser.evaluate(f"{table}.querySelector('thead').getBoundingClientRect().bottom + 4")
        browser.screenshot(tmp_path / f"{number}.png", whole=False)
        row = images.imread(tmp_path / f"{number}.png")[round(y), :, :3].mean(-1)  # 1 is white
        found.append((row[round(left)], row[round(left + width) - 1]))
    assert found[0][0] == found[1][1] == 1 and max(found[0][1], found[1][0]) < 0.85


def test_on_paper_it_is_light_and_without_tools(browser: Chromium) -> None:
    browser.look(1280, dark=True)
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    browser.look(1017, dark=True, media="print")  # A4 on its side, less the margins
    assert browser.evaluate("document.documentElement.scrollWidth") == 1017
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('.tools')).display") == "none"
    assert browser.evaluate("document.querySelector('.plot .xtick text').style.fill") == "rgb(28, 33, 43)"
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert len(browser.ask("Page.printToPDF", printBackground=True)["data"]) > 50_000
