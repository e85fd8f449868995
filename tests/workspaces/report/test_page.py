"""The page as a browser shows it, opened from its file."""

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright: it drives the browser")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, sweep, report):
    """The report of the sweep on a phone; `page.heard` is what it complained about or asked a network for."""
    html = report(sweep).html.resolve()
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.heard = []
    page.on("console", lambda message: page.heard.append(message.text))
    page.on("pageerror", lambda error: page.heard.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else page.heard.append(r.url))
    page.goto(f"file://{html}")
    yield page
    page.close()


def test_it_is_whole_plays_and_links_without_a_network(page):
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing sticks out on a phone

    page.evaluate("document.querySelectorAll('details.sheet').forEach(sheet => sheet.open = true)")
    links = page.evaluate("[...document.querySelectorAll('.map a')].map(a => a.getAttribute('href'))")
    assert len(links) == 4 + 3  # episodes of two settings
    for link in links:
        page.locator(f".map a[href='{link}']").dispatch_event("click")
        page.wait_for_selector(f"{link}[open]")
        assert page.locator(f"{link} pre").is_visible()

    videos = page.locator("video")
    assert videos.count() == len(links)
    for i in range(len(links)):
        played = (
            "v => new Promise(done => { v.ontimeupdate = () => v.currentTime > 0 && done(v.readyState); v.play() })"
        )
        assert videos.nth(i).evaluate(played) >= 2
    assert page.heard == []


def test_a_link_from_elsewhere_opens_its_card(page):
    card = page.evaluate("document.querySelectorAll('.card')[5].id")
    page.goto(f"{page.url.partition('#')[0]}#{card}")
    page.wait_for_selector(f"#{card}[open]")
    assert page.locator(f"#{card} pre").is_visible()
