"""`realm-min page` in a real browser: what stands on the screen is what the library says, by mouse and by keyboard.

`make test-page`. It needs the package playwright and a Chromium of the system's, and skips without them.
"""

import asyncio
import json
import math
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest

from realm_min.app import default_model
from realm_min.page import asked, command, learned, saved, searched, small_realm
from realm_min.page.running import Running

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
uvicorn = pytest.importorskip("uvicorn")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
QUESTION = "What is the highest point of Kenya?"
SIZES = ((1280, 900), (400, 800))
MOST_BESIDE_THE_MODEL = 0.3  # seconds

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def model(default_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(default_cache))
        return default_model.load()


@pytest.fixture(scope="module")
def address(model):
    """Where the page of the default model is served, by a thread of this process."""
    from realm_min.page.server import application

    listener = command.listening(0)
    config = uvicorn.Config(application(Running(model, command.SHIPPED)), log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def open_page(browser, address):
    """A function that opens the page: it fails the test where the page asked elsewhere or reported an error."""
    contexts, faults = [], []

    def opened(path="", url=None, size=SIZES[0], theme="light"):
        context = browser.new_context(viewport=dict(zip(("width", "height"), size, strict=True)), color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        start = url or address
        page.on("request", lambda r: None if r.url.startswith((start, "data:", "blob:")) else faults.append(r.url))
        page.goto(start + path)
        page.faults = faults
        return page

    yield opened
    for context in contexts:
        context.close()
    # A refusal is a 400 on purpose, which Chromium reports as an error.
    assert [fault for fault in faults if "400 (Bad Request)" not in fault] == []


def ask(page, question=QUESTION):
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_role("heading", name=question).wait_for()
    page.locator(".heads button").first.wait_for()


def number(text):
    """A number as the page writes it."""
    return float(text.replace("−", "-").replace(",", ""))


def close(shown, value):
    """To the digits that are shown: three of a small number, else its decimals."""
    digits = len(shown.partition(".")[2])
    mine = number(shown)
    return math.isclose(mine, value, rel_tol=0.06) if "e" in shown else abs(mine - value) <= 0.51 * 10**-digits


# ---- Ask


def test_the_answer_on_the_screen_is_the_librarys(open_page, model):
    page = open_page()
    ask(page)
    found, (answer,) = asked.ask(model, QUESTION), model.answer([QUESTION])
    assert page.locator("#answer-text").inner_text() == answer.text
    assert close(page.locator("#answer-p").inner_text(), answer.probability)
    assert close(page.locator("#answer-mixture").inner_text(), found["answer"]["mixture"])
    assert page.locator(".sentence mark").inner_text() == answer.text
    assert page.locator(".pieces b").all_inner_texts() == [piece["piece"] for piece in found["wordpieces"]]
    assert page.locator(".pieces small").all_inner_texts() == [str(piece["id"]) for piece in found["wordpieces"]]
    for row, block in zip(page.locator("label.block").all(), answer.blocks, strict=True):
        assert close(row.locator(".block-score").inner_text().removeprefix("f "), block.score)
        assert close(row.locator(".meter .mono").inner_text(), block.probability)
        alone = next(found_block["alone"] for found_block in found["blocks"] if found_block["id"] == block.id)
        assert alone["text"] in row.locator(".alone").inner_text()
    assert page.get_by_label("From the best span").count() == 0


def test_spans_and_attention_by_keyboard(open_page, model):
    page = open_page()
    ask(page)
    found = asked.ask(model, QUESTION)
    block = found["blocks"][found["answer"]["block"]]
    reading = page.locator(".spans .reading")
    score = re.compile(r"S\(b, s\) = ([\d.−]+),")
    page.get_by_role("group", name="Spans by place and width").focus()
    page.keyboard.press("Home")
    for key, first, width in (("", 0, 0), ("ArrowUp", 0, 1), ("ArrowLeft", -1, 1), ("ArrowDown", -1, 0)):
        if key:
            page.keyboard.press(key)
        expected = block["spans"][block["best"]["width"] - 1 + width][block["best"]["first"] + first]
        assert close(score.search(reading.inner_text())[1], expected)
    # Another block, by its radio button.
    page.locator("label.block input").nth(1).check()
    page.get_by_role("heading", name="Every span of block 2").wait_for()
    page.wait_for_timeout(50)
    assert close(score.search(reading.inner_text())[1], found["blocks"][1]["best"]["score"])
    page.locator("label.block input").nth(0).check()
    # Attention: a head, then a wordpiece.
    heads = page.get_by_role("radiogroup", name="Layers and heads")
    heads.get_by_role("radio").nth(40).click()
    page.keyboard.press("ArrowRight")
    says = page.locator(".heads + .reading")
    attentions, tokens = asked.attentions_of(model, QUESTION, block["id"])
    first = block["prefix"] + block["best"]["first"]
    own = attentions[3, 5, first : first + block["best"]["width"]].mean(0)
    assert says.inner_text().startswith("Layer 4, head 6: ")
    assert close(re.search(r": ([\d.]+) goes", says.inner_text())[1], float(own[1 : block["prefix"] - 1].sum()))
    piece = page.locator(".read-text span").nth(7)
    assert piece.inner_text().strip() == tokens[7]["piece"] == "kenya"
    piece.click()
    page.get_by_role("button", name="From the best span again").wait_for()
    share = float(attentions[3, 5, 7, 1 : block["prefix"] - 1].sum())
    assert close(re.search(r": ([\d.]+) goes", says.inner_text())[1], share)


def test_bad_input_keeps_its_text(open_page, model):
    page = open_page()
    box = page.get_by_label("Your question")
    for typed in ("   ", "why " * 600):
        box.fill(typed)
        page.keyboard.press("Enter")
        with pytest.raises(ValueError) as refusal:
            model.check_questions([typed])
        fault = page.locator("#asking-fault")
        page.get_by_text(str(refusal.value)[1:40]).wait_for()
        assert fault.inner_text().lower() == f"{refusal.value}.".lower().replace("….", "…")
        assert box.input_value() == typed and fault.get_attribute("role") == "alert"
    ask(page)
    assert page.locator("#asking-fault").inner_text() == ""


def hold(page, name):
    """From now on requests of this name wait in the list that is returned, as if the machine were slow."""
    held = []
    page.route(f"**/api/{name}", lambda route: held.append(route))
    return held


def wait_until(page, condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


@pytest.fixture
def unready(browser, address):
    """The page before it knows its model, and what it asked to know it."""
    with browser.new_context() as context:
        page = context.new_page()
        held = hold(page, "about")
        page.goto(address)
        wait_until(page, lambda: held)
        yield page, held[0]


def test_a_question_typed_before_the_page_is_ready_is_answered(unready):
    page, about = unready
    page.get_by_label("Your question").fill(QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#status').textContent")
    about.continue_()
    page.get_by_role("heading", name=QUESTION).wait_for(timeout=60_000)
    assert page.get_by_label("Your question").input_value() == QUESTION
    assert page.locator("#asking-fault").inner_text() == ""


@pytest.mark.parametrize(
    ("tab", "shows"), [("Learn", "No step was taken yet."), ("Search", "Why is the search exact?")]
)
def test_a_tab_opened_before_the_page_is_ready_stays_open(unready, tab, shows):
    page, about = unready
    page.get_by_role("tab", name=tab).click()
    about.continue_()
    page.locator("#examples button").first.wait_for(state="attached")  # it is ready
    page.get_by_text(shows).wait_for(timeout=60_000)
    assert page.get_by_role("tab", name=tab).get_attribute("aria-selected") == "true"


def test_a_page_that_cannot_know_its_model_says_so(unready):
    page, about = unready
    about.abort()
    says = page.locator("footer", has_text="does not answer")
    says.wait_for()
    assert says.inner_text() == "Realm-min page does not answer: start it again, then reload."


# ---- an answer that comes late


def answer_late(page, name, route):
    """Let a request that was held go on, and give the page the time to show what it should not."""
    with page.expect_response(f"**/api/{name}"):
        route.continue_()
    page.wait_for_timeout(300)


def test_the_question_asked_last_is_the_one_shown(open_page):
    page = open_page()
    held = hold(page, "ask")
    page.locator("#examples button").nth(0).click()
    wait_until(page, lambda: len(held) == 1)
    page.locator("#examples button").nth(1).click()
    wait_until(page, lambda: len(held) == 2)
    last = page.locator("#examples button").nth(1).inner_text()
    held[1].continue_()
    page.get_by_role("heading", name=last).wait_for()
    answer_late(page, "ask", held[0])
    assert page.locator("#view-ask h2").inner_text() == last
    page.get_by_role("tab", name="Search").click()
    assert page.locator("#view-search h2").inner_text() == last


@pytest.mark.parametrize("refused", [False, True])
def test_the_sentence_chosen_last_is_the_one_hidden_in(open_page, refused):
    page = open_page()
    held = hold(page, "words")
    page.get_by_role("tab", name="Learn").click()
    wait_until(page, lambda: len(held) == 1)
    page.get_by_label("A sentence: type one").fill("Something belongs to Kenya.")
    page.get_by_role("button", name="Use it").click()
    wait_until(page, lambda: len(held) == 2)
    words = page.get_by_role("group", name="The sentence")
    held[1].continue_()
    words.get_by_role("button", name="Kenya").wait_for()
    with page.expect_response("**/api/words"):
        if refused:
            held[0].fulfill(status=400, json={"error": "400 (Bad Request)"})
        else:
            held[0].continue_()
    page.wait_for_timeout(300)
    assert words.get_by_role("button", name="Kenya").is_visible() and page.locator("#learn-fault").inner_text() == ""
    assert words.get_by_role("button", pressed=True).count() == 0 and not page.locator(".learn-table").is_visible()


def test_a_word_shown_again_needs_no_lesson(open_page):
    page = open_page("#view=learn")
    words = page.get_by_role("group", name="The sentence")
    page.locator(".learn-table").wait_for()
    held = hold(page, "learn")
    words.get_by_role("button", name="belongs").click()
    wait_until(page, lambda: held)
    words.get_by_role("button", name="belongs").click()
    words.get_by_role("button", name="ao").click()
    wait_until(page, lambda: len(held) == 2)
    answer_late(page, "learn", held[0])
    assert words.get_by_role("button", pressed=True).count() == 0 and not page.locator(".learn-table").is_visible()


def test_the_wordpiece_chosen_last_is_the_one_that_attends(open_page):
    page = open_page()
    ask(page)
    held = hold(page, "attention")
    pieces, chosen = page.locator(".read-text span"), page.locator(".read-text span.from")
    for place in (7, 8):
        pieces.nth(place).click()
        wait_until(page, lambda place=place: len(held) == place - 6)
    held[1].continue_()
    page.locator('.read-text span.from[data-at="8"]').wait_for()
    answer_late(page, "attention", held[0])
    assert chosen.count() == 1 and chosen.get_attribute("data-at") == "8"


def test_the_compression_chosen_last_is_the_one_shown(open_page):
    page = open_page()
    ask(page)
    held = hold(page, "search")
    page.get_by_role("tab", name="Search").click()
    wait_until(page, lambda: len(held) == 1)
    page.locator('input[value="bfloat16"]').check()
    wait_until(page, lambda: len(held) == 2)
    held[1].continue_()
    page.locator("#bytes", has_text="2").wait_for()
    answer_late(page, "search", held[0])
    assert page.locator("#bytes").inner_text() == "2"


def test_hostile_text_is_text(open_page):
    page = open_page()
    hostile = "</script><img src=x onerror=alert(1)>\u202e\x1b[2J<b>Kenya</b>?"
    page.on("dialog", lambda dialog: page.faults.append("a dialog opened"))
    page.get_by_label("Your question").fill(hostile)
    page.keyboard.press("Enter")
    heading = page.locator("#view-ask h2", has_text="onerror")
    heading.wait_for()
    assert heading.inner_text() == "</script><img src=x onerror=alert(1)>\\u202e\\x1b[2J<b>Kenya</b>?"
    assert page.locator("main img").count() == 0


# ---- Learn


def test_steps_move_the_bars_as_the_library_says(open_page):
    realm = small_realm.load()
    page = open_page()
    page.get_by_role("tab", name="Learn").click()
    count = page.locator("#count")
    count.get_by_text("No step").wait_for()
    lesson = learned.lesson(realm, learned.FIRST["text"], learned.FIRST["hidden"])
    branches = {name: (learned.models_of(realm), name == "with") for name in ("with", "without")}
    for step in range(4):
        if step:
            page.get_by_role("button", name="Take a step").click()
            count.get_by_text(f"After {step} ").wait_for()
        for name, (models, with_gradient) in branches.items():
            if step:
                learned.step(models, lesson, with_gradient)
            seen = learned.look(realm, models, lesson)
            assert close(page.locator(f"#p-{name}").inner_text(), math.exp(seen["log_p"]))
            for i, row in enumerate(page.locator(".learn-table tbody tr").all()):
                prior, posterior = row.locator(f"td.pair.{name} .mono").all_inner_texts()
                assert close(prior, seen["prior"][i]) and close(posterior, seen["posterior"][i])
                assert close(row.locator(f"td.number.{name} > span").inner_text(), seen["likelihood"][i])
                r = row.locator(f"td.{name} .r span").inner_text()
                assert close(r.lstrip("+"), seen["r"][i])
                fill = row.locator(f"td.pair.{name} .fill").first.evaluate("bar => parseFloat(bar.style.width)")
                assert fill == pytest.approx(100 * seen["prior"][i], abs=0.01)
    page.get_by_role("button", name="Reset").click()
    count.get_by_text("No step").wait_for()
    first = learned.look(realm, learned.models_of(realm), lesson)
    assert close(page.locator("#p-with").inner_text(), math.exp(first["log_p"]))


def test_a_word_is_hidden_by_a_click_a_key_and_by_salient_masking(open_page):
    page = open_page("#view=learn")
    words = page.get_by_role("group", name="The sentence")
    words.get_by_role("button", name="ao", pressed=True).wait_for()
    words.get_by_role("button", name="ao").click()  # shown again: nothing is hidden
    page.locator(".learn-table").wait_for(state="hidden")
    held = []
    page.route("**/learn", lambda route: held.append(route))
    words.get_by_role("button", name="belongs").focus()
    page.keyboard.press("Enter")
    while not held:
        page.wait_for_timeout(20)
    assert not page.locator(".learn-table").is_visible()  # it has the numbers of the word that was hidden before
    held.pop().continue_()
    page.unroute("**/learn")
    page.locator(".learn-table").wait_for()
    assert words.get_by_role("button", name="belongs").get_attribute("aria-pressed") == "true"
    realm = small_realm.load()
    seen = learned.look(realm, learned.models_of(realm), learned.lesson(realm, learned.FIRST["text"], [3]))
    assert close(page.locator("#p-with").inner_text(), math.exp(seen["log_p"]))
    page.get_by_role("button", name="Let salient masking choose").click()
    words.get_by_role("button", name="Angola", pressed=True).wait_for()
    page.get_by_label("A sentence: type one").fill("xyzzy belongs to somebody")
    page.get_by_role("button", name="Use it").click()
    words.get_by_role("button", name="xyzzy").wait_for()
    assert words.get_by_role("button", name="xyzzy").is_disabled()
    page.get_by_role("button", name="Let salient masking choose").click()
    page.get_by_text("Salient span masking finds no name or date here").wait_for()
    assert page.get_by_label("A sentence: type one").input_value() == "xyzzy belongs to somebody"


# ---- Search


def test_the_bounds_on_the_screen_are_the_librarys(open_page, model):
    page = open_page()
    ask(page)
    page.get_by_role("tab", name="Search").click()
    for name in ("int8", "bfloat16", None):
        page.locator(f'input[value="{name}"]').check()
        found = searched.search(model, searched.codes_of(model, name), QUESTION)
        page.locator("#bytes", has_text=str(found["bytes"])).wait_for()
        assert close(page.locator("#threshold").inner_text(), found["threshold"])
        assert number(page.locator("#rescored").inner_text()) == found["rescored"]
        assert number(page.locator("#groups").inner_text()) == found["groups"]
        ids = page.locator("#view-search tbody td:nth-child(2)").all_inner_texts()
        assert [int(i) for i in ids] == [block.id for block in model.answer([QUESTION])[0].blocks]


# ---- all of it


def test_a_saved_answer_needs_no_server(open_page, model, tmp_path):
    path = tmp_path / "answer.html"
    path.write_text(saved.self_contained(Running(model, command.SHIPPED), QUESTION), encoding="utf-8", newline="")
    page = open_page(url=path.as_uri())
    page.locator(".heads button").first.wait_for()
    assert page.locator("#answer-text").inner_text() == model.answer([QUESTION])[0].text
    assert page.get_by_role("tab", name="Learn").count() == 0
    page.locator("label.block input").nth(2).check()
    page.get_by_role("heading", name="Every span of block 3").wait_for()
    page.get_by_role("tab", name="Search").click()
    page.locator("#threshold").wait_for()
    page.locator('input[value="None"]').check()
    page.locator("#bytes", has_text="4").wait_for()


def test_the_page_saves_what_it_shows(open_page, tmp_path):
    page = open_page()
    ask(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save this answer").click()
    download.value.save_as(tmp_path / "again.html")
    text = (tmp_path / "again.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="saved">(.*?)</script>', text, re.DOTALL)[1])
    assert data["ask"]["question"] == QUESTION


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_view_fits_and_is_readable(open_page, size, theme, tmp_path):
    """No view is wider than the window, texts stand out from what is behind them, and everything has a name."""
    folder = Path(os.environ.get("SHOTS") or tmp_path)
    page = open_page(size=size, theme=theme)
    ask(page)
    for view in ("ask", "learn", "search"):
        page.locator(f"#tab-{view}").click()
        page.locator({"ask": ".heads", "learn": ".learn-table", "search": "#threshold"}[view]).wait_for()
        page.wait_for_timeout(700)  # bars move
        path = folder / f"{view}-{theme}-{size[0]}.png"
        page.screenshot(path=path, full_page=True)
        assert path.stat().st_size > 20_000
        assert page.locator("html").evaluate("html => html.scrollWidth") <= size[0]
        assert page.locator(f"#view-{view}").evaluate(NAMELESS) == []
        assert page.locator("body").evaluate(PALE) == []
    assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == (
        "rgb(251, 250, 247)" if theme == "light" else "rgb(20, 23, 29)"
    )


# Controls without a name that a screen reader could say.
NAMELESS = """view => [...view.querySelectorAll("button, input, select, [role=radio], [role=img]")].filter((x) =>
    !x.getAttribute("aria-label") && !x.innerText?.trim() && !x.labels?.length).map((x) => x.outerHTML)"""
# Visible texts of a contrast below 4.5 with the nearest background (WCAG 2.1, 1.4.3).
PALE = """body => {
  const parse = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const linear = (x) => (x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const pale = [];
  for (const node of body.querySelectorAll("*")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest("svg, script, :disabled")) continue;
    const text = parse(getComputedStyle(node).color).slice(0, 3), back = behind(node);
    const [a, b] = [light(text), light(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) pale.push(`${node.className} ${node.textContent.slice(0, 40)}`);
  }
  return pale;
}"""


def test_the_page_adds_little_to_the_models_time(open_page, model, monkeypatch):
    """From the key to the answer on the screen, less what the model took in that very request: the best of seven.

    The best, since whatever else this machine does adds to all of them.
    """
    spent = []

    def timed(owner, name):
        function = getattr(owner, name)

        def call(*given, **named):
            started = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent.append(time.perf_counter() - started)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((asked, "vector_of"), (model, "search"), (model, "score_spans")):
        timed(owner, name)
    page = open_page()
    ask(page)
    of_model, beside = [], []
    for country in ("Uruguay", "Peru", "Norway", "Chad", "Japan", "Cuba", "Mali"):
        question = f"What is the capital of {country}?"
        page.get_by_label("Your question").fill(question)
        spent.clear()
        started = time.perf_counter()
        page.keyboard.press("Enter")
        # Each frame is looked at: a locator that waits looks again after up to half a second.
        page.wait_for_function("asked => document.querySelector('#view-ask h2').textContent === asked", arg=question)
        passed = time.perf_counter() - started
        of_model.append(sum(spent[:3]))  # after these comes the attention, which is drawn below the answer
        beside.append(passed - of_model[-1])
        page.locator(".heads button").first.wait_for()
    all_of_them = ", ".join(f"{1000 * x:.0f}" for x in sorted(beside))
    print(f"\nthe model takes {min(of_model):.2f} s, the page beside it {all_of_them} ms")
    if min(beside) >= MOST_BESIDE_THE_MODEL and os.getloadavg()[0] > os.cpu_count():
        pytest.skip(f"others use this machine, too: {all_of_them} ms tell nothing")
    assert min(beside) < MOST_BESIDE_THE_MODEL
