"""The built page in a real browser, from disk and without a network: every station by keyboard, its numbers against helpers.

`make page` builds dist/page.html. Needs node and Debian's chromium; without them the tests skip, except in CI, where they
fail. SCREENSHOTS=folder keeps pictures of every station.
"""

import contextlib
import gzip
import io
import os
import random
import re
import shutil
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import pytest
import torch
from chromium import CHROMIUM, FLAGS

from helpers import (
    edit,
    load_model,
    scale_attention,
    scale_block,
    scale_mlp,
    skip_block,
    sweep_heads,
    top_k,
    zero_heads,
    zero_keys,
)  # fmt: skip

playwright_api = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parent.parent
PAGE, FOLDER = ROOT / "dist" / "page.html", ROOT / "dist" / "page"
STATIONS = ("scale", "parts", "keys", "map", "skip")
PROMPT = "Berlin is the capital of"
PATIENCE = 120  # seconds, for a machine that is busy with other things
CLOSE = 0.003  # nats


@pytest.fixture(scope="module")
def lm():
    return load_model()


@pytest.fixture(scope="module")
def chromium():
    lacks = [] if CHROMIUM else ["chromium (on Debian: apt install chromium)"]
    lacks += [] if PAGE.exists() else ["dist/page.html (make page)"]
    if lacks:
        message = f"the page's test needs {' and '.join(lacks)}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with playwright_api.sync_playwright() as playwright:
        yield partial(playwright.chromium.launch, executable_path=CHROMIUM)


@pytest.fixture(scope="module")
def browser(chromium):
    browser = chromium(args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """The page, a lone file in an empty folder, opened once without a network; what it asked for, and what went wrong."""
    file = tmp_path_factory.mktemp("page") / "page.html"
    shutil.copy(PAGE, file)
    context = browser.new_context(offline=True, reduced_motion="reduce", viewport={"width": 1280, "height": 900})
    page = context.new_page()
    requests, faults = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.goto(file.as_uri())
    until(page, "document.documentElement.dataset.state === 'ready'")
    yield page, requests, faults
    context.close()


@pytest.fixture
def page(opened):
    """The open page with all settings as at the start."""
    page, _, faults = opened
    faults.clear()
    after(page, "prompt", lambda: page.locator("#reset").click())
    until(page, "document.querySelector('#skip .finding').textContent.includes('No block is skipped')")
    yield page
    assert faults == []


def until(page, condition):
    """Wait until an expression is true. (playwright's own wait would need eval, which the page's policy forbids.)"""
    end = time.monotonic() + PATIENCE
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"never came true: {condition}"
        page.wait_for_timeout(15)


def after(page, name, act):
    """Do something, and wait until the page has measured one more `name`."""
    known = page.evaluate(f"performance.getEntriesByName('{name}').length")
    act()
    until(page, f"performance.getEntriesByName('{name}').length > {known}")


def measured(page, name):
    return page.evaluate(f"performance.getEntriesByName('{name}').map(entry => entry.duration)")


def words(page, station):
    """The next words of a station's picture with the probabilities that it shows, once all is answered, for the edited run."""
    until(page, "document.querySelector('#stations').getAttribute('aria-busy') === 'false'")
    texts = page.evaluate(
        """station => [...document.querySelectorAll(`#${station} .words li`)].map(
        row => [row.querySelector('.word').textContent, row.querySelector('.value').textContent])""",
        station,
    )
    return {word: value.split("→")[-1].strip() for word, value in texts}


def python_says(page, station):
    """What the Python that a station offers prints, when it is run."""
    code = page.locator(f"#{station} pre code").text_content()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    return eval(printed.getvalue())


def agree(shown, expected):
    """The page's words and percentages are the package's."""
    for word, probability in expected:
        name = word.strip() if word.startswith(" ") else f"…{word}" if word[0].isalnum() else word
        assert name in shown, (name, shown)
        text = shown[name].rstrip("%")
        if text.startswith("<"):
            assert probability < 0.0011
        else:
            assert abs(float(text) / 100 - probability) < (0.0052 if "." not in text else 0.0006), (
                name,
                text,
                probability,
            )


def choose_by_keyboard(page, station, answer):
    """Go to a station by its link, from there to its guess with Tab, and choose with the keys."""
    first = page.locator(f"#{station} .options input").first
    page.locator(f"nav a[href='#{station}']").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert first.evaluate("element => element === document.activeElement"), "Tab does not lead to the guess"
    page.keyboard.press("Space")
    for _ in range(answer):
        page.keyboard.press("ArrowRight")
    until(page, f"document.querySelector('#{station} .verdict').textContent !== ''")
    until(page, f"!document.querySelector('#{station} .control').disabled")
    until(page, "document.querySelector('#stations').getAttribute('aria-busy') === 'false'")


def test_nothing_leaves_the_page(opened):
    page, requests, faults = opened
    assert requests[0].startswith("file:")
    assert [url for url in requests[1:] if not url.startswith(("data:", "blob:"))] == []
    assert faults == []
    assert "connect-src 'none'" in page.locator("meta[http-equiv]").get_attribute("content")


def test_size_and_start(opened, note):
    page, _, _ = opened
    size, packed = PAGE.stat().st_size / 1e6, len(gzip.compress(PAGE.read_bytes(), 6)) / 1e6
    assert size <= 45
    assert packed <= 20
    ready = page.evaluate("performance.getEntriesByName('ready')[0].startTime")
    note(f"the page: {size:.1f} MB, {packed:.1f} MB gzipped, ready {ready / 1000:.1f} s after it was opened")


def test_first_words(page, lm):
    assert page.locator("#answer").inner_text() == f"{PROMPT} Germany"
    assert page.locator("#tokens li").all_inner_texts() == [text.strip() for text in lm.token_strings(PROMPT)]
    agree(words(page, "answer-picture"), top_k(lm, lm.logits(PROMPT)[0, -1]))


def test_scale(page, lm):
    choose_by_keyboard(page, "scale", 1)
    assert "right" in page.locator("#scale .verdict").inner_text()  # only double changes the word
    agree(words(page, "scale"), python_says(page, "scale"))
    factor = page.locator("#scale input[type=range]").first
    factor.focus()
    before = page.locator("#scale .finding").inner_text()
    for _ in range(3):
        after(page, "edit", lambda: page.keyboard.press("ArrowLeft"))
    assert page.locator("#scale .finding").inner_text() != before
    assert factor.get_attribute("aria-valuetext") == "× 1.85"
    agree(words(page, "scale"), python_says(page, "scale"))
    with edit(lm, scale_block(2, 1.85)):
        agree(words(page, "scale"), top_k(lm, lm.logits(PROMPT)[0, -1]))
    page.locator("#scale input[type=range]").nth(1).focus()
    after(page, "edit", lambda: page.keyboard.press("End"))  # block 11: only a norm follows
    assert "to the same size" in page.locator("#scale .finding").inner_text()
    assert page.locator("#live").inner_text() != ""
    page.locator("#scale .links button").last.click()
    until(page, "document.querySelector('#scale .control').disabled")


def test_parts(page):
    choose_by_keyboard(page, "parts", 0)
    agree(words(page, "parts"), python_says(page, "parts"))
    assert "Without attention's part" in page.locator("#parts .finding").inner_text()
    boxes = page.locator("#parts input[type=checkbox]")
    boxes.nth(1).focus()
    after(page, "edit", lambda: page.keyboard.press("Space"))
    assert "All three parts together" in page.locator("#parts .finding").inner_text()
    for box in (0, 2):
        boxes.nth(box).focus()
        after(page, "edit", lambda: page.keyboard.press("Space"))
    agree(words(page, "parts"), python_says(page, "parts"))


def test_keys(page, lm):
    choose_by_keyboard(page, "keys", 2)
    agree(words(page, "keys"), python_says(page, "keys"))
    with edit(lm, zero_keys(10, [3])):
        agree(words(page, "keys"), top_k(lm, lm.logits(PROMPT)[0, -1]))
    values = page.locator("#keys .looks .value").all_inner_texts()
    assert [value.split("→")[1].strip() for value in values] == ["20%"] * 5
    page.locator("#keys .choice input").nth(1).focus()
    after(page, "edit", lambda: page.keyboard.press("ArrowRight"))
    with edit(lm, zero_heads(10, [3])):
        agree(words(page, "keys"), top_k(lm, lm.logits(PROMPT)[0, -1]))


def test_map(page, lm, note):
    choose = page.locator("#map .quiet", has_text="No guess")
    choose.focus()
    page.keyboard.press("Enter")
    stop = page.locator("#map .sweep .quiet")
    stop.wait_for()
    stop.click()
    until(page, "document.querySelector('#map .sweep .quiet').hidden")
    again = page.locator("#map .main")
    again.focus()
    after(page, "map", lambda: page.keyboard.press("Enter"))
    target = lm.token_id(" Germany")
    before = lm.logits(PROMPT)[0, -1].log_softmax(-1)[target].exp().item()
    after_each = before * sweep_heads(lm, PROMPT, target=" Germany").exp()
    for cell in page.locator("#map [role=gridcell]").all():
        text = cell.get_attribute("aria-label")
        block, head, old, new = re.fullmatch(r"Block (\d+), head (\d+): (\d+)% → (\d+)%", text).groups()
        assert abs(int(old) / 100 - before) < 0.0052
        assert abs(int(new) / 100 - float(after_each[int(block), int(head)])) < 0.0052, text
    strongest = divmod(int(after_each.argmin()), lm.n_heads)
    assert f"head {strongest[1]} of block {strongest[0]}" in page.locator("#map .finding").inner_text()
    page.locator("#map [role=gridcell][tabindex='0']").focus()
    page.keyboard.press("ArrowUp")
    after(page, "edit", lambda: page.keyboard.press("Enter"))
    agree(words(page, "map"), python_says(page, "map"))
    note(
        f"the map of 144 heads, {len(page.locator('#tokens li').all())} tokens: {measured(page, 'map')[-1] / 1000:.2f} s"
    )


def test_skip(page, lm):
    choose_by_keyboard(page, "skip", 1)
    page.locator("#skip .blocks input").nth(6).focus()
    after(page, "edit", lambda: page.keyboard.press("Space"))
    agree(words(page, "skip"), python_says(page, "skip"))
    with edit(lm, *[skip_block(block) for block in (4, 5, 6)]):
        agree(words(page, "skip"), top_k(lm, lm.logits(PROMPT)[0, -1]))
    assert "Without blocks 4, 5, and 6" in page.locator("#skip .finding").inner_text()


def test_free_play_and_the_address(page):
    """Settings by keys, the same numbers in Python, and the same settings again from the address."""
    desk = page.locator("#desk")
    desk.locator("input[type=range]").nth(3).focus()
    after(page, "edit", lambda: page.keyboard.press("Home"))
    for name in ("Attention of block 5", "MLP of block 5", "MLP of block 7"):
        desk.get_by_role("button", name=name, exact=True).focus()
        after(page, "edit", lambda: page.keyboard.press("Enter"))
    desk.locator("[role=gridcell][tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    after(page, "edit", lambda: page.keyboard.press("Enter"))
    after(page, "edit", lambda: page.keyboard.press("Enter"))
    after(page, "edit", lambda: desk.locator(".tokens button").nth(2).click())
    after(page, "edit", lambda: desk.locator(".tokens button").nth(4).click())
    shown, code = words(page, "desk"), desk.locator("pre code").text_content()
    assert code.count("positions=[2, 4]") == 4
    for edited in ("zero_heads(1, [0]", "scale_block(3, 0", "skip_block(5", "skip_mlp(7"):
        assert edited in code
    agree(shown, python_says(page, "desk"))
    until(page, "location.hash.includes('desk')")
    address = page.evaluate("location.hash")
    page.locator("#reset").click()
    until(page, "location.hash === ''")
    after(page, "prompt", lambda: page.evaluate(f"location.hash = {address!r}"))
    until(page, "document.querySelector('#desk pre code').textContent.includes('skip_block')")
    assert desk.locator("pre code").text_content() == code
    until(page, "document.querySelector('#desk .finding').textContent.includes('changes')")
    assert words(page, "desk") == shown
    after(page, "edit", lambda: desk.get_by_role("button", name="Reset the desk").click())
    assert "Nothing is changed" in desk.locator(".finding").inner_text()


def test_prompts(page, lm, note):
    """What people type: nothing, too much, signs of all kinds."""
    box, problem = page.locator("#prompt"), page.locator("#problem")

    def wrong(text, sentence):
        box.fill(text)
        box.press("Enter")
        until(page, f"document.querySelector('#problem').textContent.includes({sentence!r})")
        assert box.get_attribute("aria-invalid") == "true"
        assert page.locator("#answer").inner_text() == f"{PROMPT} Germany"

    wrong("", "is empty")
    wrong("word " * 200, "at most 128")
    wrong("ab1 ü🙂" * 1500, "shorten it")
    for text in (
        "🙂",
        " ",
        "<b>bold</b> & “quotes”",
        "Hanoi is the capital of",
        "The old man looked at her, and said that he was",
    ):
        box.fill(text)
        after(page, "prompt", lambda: box.press("Enter"))
        assert problem.inner_text() == ""
        shown = words(page, "answer-picture")
        best, share = top_k(lm, lm.logits(text)[0, -1], 1)[0]
        assert len(page.locator("#tokens li").all()) == len(lm.token_ids(text))
        if best.strip():
            agree(shown, [(best, share)])
    assert len(lm.token_ids(text)) == 12
    until(page, "document.querySelector('#skip .finding').textContent.includes('No block is skipped')")
    page.locator("#scale .guess .quiet").click()
    slider = page.locator("#scale input[type=range]").first
    slider.focus()
    known = len(measured(page, "edit"))
    for _ in range(12):
        after(page, "edit", lambda: page.keyboard.press("ArrowLeft"))
    times = measured(page, "edit")[known + 2 :]
    note(f"from slider to numbers, 12 tokens: {median(times):.0f} ms (median of {len(times)})")


def test_every_control_has_a_name(page):
    nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, a, [role=img], [role=grid]')].filter(element => {
        const name = element.getAttribute('aria-label') || element.textContent.trim()
            || [...element.labels ?? []].map(label => label.textContent.trim()).join('');
        return !name;
    }).map(element => element.outerHTML.slice(0, 200))""")
    assert nameless == []


def test_no_screen_is_too_small(page):
    for station in STATIONS:
        page.locator(f"#{station} .guess .quiet").click()
    until(page, "document.querySelector('#map .sweep .quiet').hidden")
    for width in (360, 768, 1400, 3840):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(100)
        too_wide = page.evaluate("""() => [...document.querySelectorAll('body *')].filter(element => {
            const box = element.getBoundingClientRect();
            return box.width && (box.right > innerWidth + 1 || box.left < -1)
                && !element.closest('nav, pre, .offscreen, svg, .answer-line');
        }).map(element => element.outerHTML.slice(0, 120))""")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert too_wide == []
        keep_pictures(page, width)
    page.set_viewport_size({"width": 1280, "height": 900})


def keep_pictures(page, width):
    if not os.environ.get("SCREENSHOTS"):
        return
    folder = Path(os.environ["SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(400)
        page.screenshot(path=folder / f"page-{width}-{scheme}.png", full_page=True)
    page.emulate_media(color_scheme="light")


def test_without_webassembly(chromium):
    browser = chromium(args=[*FLAGS, "--js-flags=--jitless"])
    try:
        page = browser.new_page()
        page.goto(PAGE.as_uri())
        until(page, "document.documentElement.dataset.state === 'failed'")
        assert "WebAssembly" in page.locator("#status").inner_text()
        assert page.locator(".steps").is_visible()  # the text can be read
    finally:
        browser.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_the_folder_on_a_web_host(browser, lm, note):
    """The same page as files, opened with a bad address; its worker against the package, 40 random sets of edits."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=FOLDER))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page, faults = browser.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    try:
        page.goto(f"http://127.0.0.1:{server.server_port}/#prompt=")
        assert page.locator("h1").is_visible()  # at once, while the model is on its way
        assert page.locator("#scale .guess").evaluate("guess => guess.disabled")
        until(page, "document.documentElement.dataset.state === 'ready'")
        assert "is empty" in page.locator("#problem").inner_text()  # the address held a prompt of nothing
        page.locator("#scale .links button").last.click()  # there is nothing to reset yet, and nothing breaks
        page.locator("#desk .switch").first.click()
        page.locator(".chip").nth(1).click()
        until(page, "document.querySelector('#skip .finding').textContent.includes('No block is skipped')")
        assert page.locator("#answer").inner_text() == "Paris is the capital of France"
        assert faults == []
        page.evaluate(ASK)
        rng, worst = random.Random(3), 0.0
        kinds = {"scale_block": scale_block, "scale_attention": scale_attention, "scale_mlp": scale_mlp}
        for prompt in (PROMPT, "There is a lot of liquid water on planet Earth"):
            ids = lm.encode(prompt).ids
            assert page.evaluate("prompt => ask({kind: 'read', prompt})", prompt)["ids"] == ids[0].tolist()
            for _ in range(20):
                ours, theirs = [], []
                for block in rng.sample(range(lm.n_blocks), 3):
                    positions = sorted(rng.sample(range(ids.shape[1]), 3))
                    kind, factor, head = (
                        rng.choice(list(kinds)),
                        rng.choice([0, 0.5, 1.5, 3]),
                        rng.randrange(lm.n_heads),
                    )
                    ours += [kinds[kind](block, factor, positions), zero_heads(block, [head])]
                    theirs.append({"kind": kind, "block": block, "factor": factor, "positions": positions})
                    theirs.append({"kind": "zero_heads", "block": block, "heads": [head]})
                message = {"kind": "run", "ids": ids[0].tolist(), "edits": theirs, "want": ["logits"]}
                logits = torch.tensor(
                    page.evaluate("async m => [...(await ask(m)).logits]", message), dtype=torch.float64
                )
                with edit(lm, *ours):
                    expected = lm.logits(ids)[0, -1].log_softmax(-1)
                worst = max(worst, (logits.log_softmax(-1) - expected).abs().max().item())
        assert worst < CLOSE
        note(f"the page's worker: log-probabilities at most {worst:.1e} nats from the package's, 40 sets of edits")
    finally:
        page.close()
        server.shutdown()
        server.server_close()


# In the page: a second worker, and `ask(message)`, which gives its answer.
ASK = """async () => {
    const worker = new Worker('worker.js');
    const waiting = new Map();
    let next = 1;
    worker.onmessage = ({data}) => {
        if (!('progress' in data)) waiting.get(data.id)(data.result ?? {error: data.error});
    };
    window.ask = message => new Promise(resolve => {
        waiting.set(next, resolve);
        worker.postMessage({...message, id: next++});
    });
    const at = name => ({url: new URL(name + '.bin', location.href).href});
    worker.postMessage({kind: 'warm', source: at('wasm')});
    await ask({kind: 'load', sources: {model: at('model'), tokenizer: at('tokenizer')}, bytes: 1});
}"""
