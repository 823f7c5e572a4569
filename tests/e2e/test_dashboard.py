"""The dashboard, in a browser: live figures of real messages, and what its buttons do."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.balancer import Balancer, show
from tests.e2e.browser import Browser
from tests.e2e.lab import Lab
from tests.e2e.messages import message
from tests.e2e.polling import LIMIT, eventually, eventually_equal

SLOW = 3 * LIMIT  # a browser on a busy machine
TEXTS = "[...document.querySelectorAll({!r})].map((each) => each.textContent)"


class Page:
    """The dashboard of a balancer."""

    def __init__(self, browser: Browser, balancer: Balancer) -> None:
        self.browser = browser
        self.origin = f"http://{show(balancer.admin)}/"
        browser.open(self.origin)
        self.wait_for("#state", "serving")

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.browser.ask(TEXTS.format(selector))
        return found

    def text(self, selector: str) -> str:
        (text,) = self.texts(selector)
        return text

    def wait_for(self, selector: str, text: str) -> None:
        eventually_equal(lambda: self.texts(selector), [text], limit=SLOW)

    def tile(self, name: str) -> str:
        """What a tile says, without its note."""
        tiles = dict(zip(self.texts("#tiles dt"), self.texts("#tiles b"), strict=True))
        return tiles[name]

    def column(self, name: str) -> list[str]:
        """The cells of a column of the backends."""
        return self.texts(f'.backends td[data-label="{name}"]')

    def events(self) -> list[str]:
        return self.texts("#events span")

    def check(self) -> None:
        """Nothing went wrong in the page, and nothing was asked of anybody else."""
        assert self.browser.complaints == []
        assert {url for url in self.browser.requests if not url.startswith(self.origin)} == set()


@pytest.fixture(name="browser")
def _browser(lab: Lab, tmp_path: Path, need: Callable[..., None]) -> Iterator[Browser]:
    need("chromium")
    with Browser(lab.here, tmp_path) as browser:
        browser.resize(1280, 900)
        yield browser


@contextmanager
def load(balancer: Balancer) -> Iterator[None]:
    """Requests without end, from two clients."""
    stop = threading.Event()

    def ask() -> None:
        with balancer.connect() as client:
            while not stop.is_set():
                client.ask(*(message(number) for number in range(8)))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT)


def number(text: str) -> float:
    """A number as the page writes it, in full."""
    return float(text.replace(",", "").replace(" k", "e3").split(" ")[0])


def test_live_figures_of_a_load(lab: Lab, browser: Browser) -> None:
    backends = [lab.backend("a"), lab.backend("b")]
    balancer = lab.serve(backends, weights=[1, 3], balance="round_robin", batch=1)
    page = Page(browser, balancer)
    before = balancer.metrics()
    with load(balancer):
        eventually(lambda: "µs" in page.tile("Half within") or "ms" in page.tile("Half within"), limit=SLOW)
        eventually_equal(lambda: page.column("Share"), ["25.0 %", "75.0 %"], limit=SLOW)
        rates = [number(text) for text in page.column("Messages/s")]
        assert 2 < rates[1] / rates[0] < 4
        assert page.tile("Clients") == "2"
        assert page.texts(".backends th[scope=row] span") == ["a", "b"]
        assert page.column("State") == ["up", "up"]
        assert page.texts("#listeners .name") == ["rpc"]
        assert number(page.text("#listeners .strong")) > 0
        paths = "document.querySelectorAll('#{} path.line').length"
        eventually_equal(lambda: browser.ask(paths.format("rates")), 1, limit=SLOW)
        eventually_equal(lambda: browser.ask(paths.format("latency")), 2, limit=SLOW)
        label = browser.ask("document.querySelector('#latency svg').getAttribute('aria-label')")
        assert label.startswith("Time from a request to its response, now: p50 ")
        eventually(lambda: browser.ask("document.title").endswith("/s · sockmap-lb"), limit=SLOW)
    eventually_equal(lambda: page.tile("Messages a second"), "0", limit=SLOW)
    assert page.tile("Not delivered") == "0"
    assert balancer.metrics().value("messages_total") > before.value("messages_total")
    page.check()


def test_the_rate_is_that_of_the_kernels_counters(lab: Lab, browser: Browser) -> None:
    balancer = lab.serve([lab.backend("a")])
    page = Page(browser, balancer)
    client = balancer.connect()
    for _ in range(3):
        client.ask(*(message(number) for number in range(500)))
    frame = """(async () => {
        const { compare } = await import("/dashboard/frame.js");
        const status = await (await fetch("/status")).json();
        const before = structuredClone(status);
        before.uptime_seconds -= 2;
        before.listeners[0].requests -= 300;
        before.pools[0].backends[0].requests -= 300;
        before.pools[0].backends[0].durations = [];
        const { rate, p50, p99, pools } = compare(before, status);
        return [rate, pools[0].backends[0].rate, p50 > 0, p99 >= p50];
    })()"""
    assert browser.ask(frame) == [150, 150, True, True]
    page.check()


def test_drain_and_ready(lab: Lab, browser: Browser) -> None:
    balancer = lab.serve([lab.backend("a"), lab.backend("b")])
    page = Page(browser, balancer)
    button = "tbody tr:nth-child(1) button"
    page.wait_for(button, "Drain")
    # What happened before the page was opened.
    eventually(lambda: any("workers/a is up" in text for text in page.events()), limit=SLOW)
    with load(balancer):
        browser.click(button)
        page.wait_for(button, "Ready")
        assert admin_states(balancer) == ["drain", "ready"]
        assert page.column("State") == ["drain", "up"]
        eventually_equal(lambda: page.column("Share"), ["0 %", "100 %"], limit=SLOW)
        eventually(lambda: any("workers/a: drain" in text for text in page.events()), limit=SLOW)
        browser.click(button)
        page.wait_for(button, "Drain")
    assert admin_states(balancer) == ["ready", "ready"]
    names = "[...document.querySelectorAll('button')].map((each) => each.getAttribute('aria-label'))"
    assert browser.ask(names) == ["Drain workers/a", "Drain workers/b"]
    page.check()


def test_a_backend_that_is_down_says_why(lab: Lab, browser: Browser) -> None:
    ill = lab.backend("a")
    check = {"interval": "100ms", "timeout": "1s", "rise": 1, "fall": 1}
    balancer = lab.serve([ill, lab.backend("b")], health_check=check)
    page = Page(browser, balancer)
    eventually_equal(lambda: page.column("State"), ["up", "up"], limit=SLOW)
    ill.close()
    eventually_equal(lambda: page.column("State"), ["down", "up"], limit=SLOW)
    reason = balancer.status()["pools"][0]["backends"][0]["health_reason"]
    assert reason
    assert f" · {reason}, for " in page.texts(".backends th[scope=row] small")[0]
    eventually(lambda: any("workers/a is down" in text for text in page.events()), limit=SLOW)
    page.check()


def test_the_last_one_is_drained_when_it_is_said_twice(lab: Lab, browser: Browser) -> None:
    balancer = lab.serve([lab.backend("a")])
    page = Page(browser, balancer)
    page.wait_for("tbody button", "Drain")
    browser.click("tbody button")
    page.wait_for("tbody button", "The last one: drain it?")
    assert admin_states(balancer) == ["ready"]
    browser.click("tbody button")
    page.wait_for("tbody button", "Ready")
    assert admin_states(balancer) == ["drain"]
    eventually(lambda: page.text("#state").startswith("not ready: "), limit=SLOW)
    page.check()


def test_a_balancer_that_is_gone_and_comes_back(lab: Lab, browser: Browser) -> None:
    backend = lab.backend("a")
    tree = lab.tree([backend])
    first = lab.balancer(tree).wait_ready()
    tree["admin"]["address"] = show(first.admin)
    page = Page(browser, first)
    first.stop()
    page.wait_for("#state", "no answer")
    assert page.text("#alert").startswith("The balancer has not answered since ")
    assert browser.ask("document.querySelector('#alert').checkVisibility()")
    lab.balancer(tree).wait_ready()
    page.wait_for("#state", "serving")
    assert not browser.ask("document.querySelector('#alert').checkVisibility()")
    assert "the balancer answers again" in page.events()


def test_names_are_no_markup(lab: Lab, browser: Browser) -> None:
    folder = lab.folder / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    with ExitStack() as stack:
        balancer = Balancer(lab.here, lab.tree([lab.backend("a")]), folder)
        stack.callback(balancer.close)
        page = Page(browser, balancer)
        assert "<img src=x onerror=alert(1)>" in page.text("#about")
        assert browser.ask("document.querySelectorAll('#about *').length") == 0
        script = """(() => { const script = document.createElement("script");
            script.textContent = "window.bad = true"; document.body.append(script); return window.bad; })()"""
        assert browser.ask(script) is None, "the policy lets no script in the page run"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_on_a_phone(lab: Lab, browser: Browser, scheme: str) -> None:
    balancer = lab.serve([lab.backend("a"), lab.backend("b")])
    browser.resize(360, 740, scheme=scheme)
    page = Page(browser, balancer)
    page.wait_for("tbody tr:nth-child(1) button", "Drain")
    assert browser.ask("document.documentElement.scrollWidth <= innerWidth")
    assert browser.ask("[...document.querySelectorAll('button')].every((each) => each.offsetHeight >= 36)")
    for front, back in (
        ("text", "card"),
        ("dim", "card"),
        ("text", "page"),
        ("dim", "page"),
        ("good", "good-soft"),
        ("bad", "bad-soft"),
        ("warn", "warn-soft"),
        ("info", "info-soft"),
        ("card", "accent"),
    ):
        ratio = contrast(colour(browser, front), colour(browser, back))
        assert ratio >= 4.5, f"{front} on {back} is {ratio:.1f} (WCAG 2.1, 1.4.3)"
    page.check()


def test_nothing_but_the_parts_of_the_page(lab: Lab) -> None:
    balancer = lab.balancer(lab.tree([lab.backend("a")]))
    for path in ("/", "/dashboard/dashboard.js", "/dashboard/dashboard.css", "/dashboard/icon.svg"):
        assert balancer.get(path)[0] == 200
        assert balancer.get(path, method="POST")[0] == 405
    for path in ("/dashboard/", "/dashboard/index.html", "/dashboard/..%2f__init__.py", "/dashboard/nothing"):
        assert balancer.get(path)[0] == 404


class TestFigures:
    """How the page reckons and writes: its modules, in the browser that runs them."""

    def call(self, browser: Browser, balancer: Balancer, calls: dict[str, Any]) -> None:
        Page(browser, balancer)
        for call, wanted in calls.items():
            got = browser.ask(f'(async () => (await import("/dashboard/figures.js")).{call})()')
            assert got == wanted, call

    def test_figures(self, lab: Lab, browser: Browser) -> None:
        balancer = lab.balancer(lab.tree([lab.backend("a")])).wait_ready()
        self.call(
            browser,
            balancer,
            {
                "percentile([], 0.5)": None,
                "percentile([[0, 1, 10]], 0.5)": 0.5,
                "percentile([[0, 1, 98], [1, 3, 2]], 0.99)": 2,
                "percentile([[0, 1, 98], [1, 3, 2]], 1)": 3,
                "durationsBetween([[0, 1, 5]], [[0, 1, 5], [1, 2, 3]])": [[1, 2, 3]],
                "durationsBetween(undefined, [[0, 1, 5]])": [[0, 1, 5]],
                "merge([[[1, 2, 3]], [[0, 1, 1], [1, 2, 4]]])": [[0, 1, 1], [1, 2, 7]],
                "rate(10, 30, 2)": 10,
                "rate(30, 10, 2)": None,
                "rate(undefined, 10, 2)": None,
                "count(0)": "0",
                "count(12345)": "12,345",
                "count(99999.4)": "99,999",
                "count(99999.6)": "100 k",
                "count(999950)": "1.00 M",
                "count(null)": "\u2013",
                "bytes(512)": "512 B",
                "bytes(1536)": "1.50 KiB",
                "bytes(10 * 1024 ** 3)": "10.0 GiB",
                "duration(0.000213)": "213 µs",
                "duration(0.0009997)": "1.00 ms",
                "duration(0.0999)": "99.9 ms",
                "duration(0.9999)": "1.00 s",
                "duration(75)": "75.0 s",
                "percent(0)": "0 %",
                "percent(1)": "100 %",
                "percent(1 / 3)": "33.3 %",
                "age(59.9)": "59 s",
                "age(3600)": "1 h",
                "age(90061)": "1 d 1 h",
            },
        )


def admin_states(balancer: Balancer) -> list[str]:
    return [backend["admin"] for backend in balancer.status()["pools"][0]["backends"]]


def colour(browser: Browser, name: str) -> tuple[float, ...]:
    """A colour of the page as red, green and blue from 0 to 1."""
    text = browser.ask(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
    digits = text.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    return tuple(int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The ratio of WCAG 2.1."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(rgb: tuple[float, ...]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
