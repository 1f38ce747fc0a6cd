"""The comparison page in a real browser, by keyboard, on a phone, in the dark, and under attack."""

import re
import socket
import threading
from types import SimpleNamespace

import pytest
import uvicorn

from klimb.config.serving import ServeOptions
from klimb.feedback.records import Candidate
from klimb.feedback.server.app import Notes, create_app
from klimb.feedback.store.store import Store

HOSTILE = [
    "<script>window.hacked = 1; alert(1)</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "<svg/onload=window.hacked=3>",
    "[click](javascript:window.hacked=4) <javascript:window.hacked=4>",
    "![pic](https://evil.example/pixel.png)",
    "</div></section></main><style>body { display: none }</style><h1>gone</h1>",
    "<iframe src='https://evil.example/'></iframe><link rel=stylesheet href='https://evil.example/x.css'>",
    "| a |\n|--:|\n| <b onmouseover=window.hacked=5>x</b> |",
    '```js" onload="window.hacked=6\n</code></pre><script>window.hacked=6</script>\n```',
    "<form action='https://evil.example'><button>go</button></form>",
    "{{ 7 * 7 }} ${7 * 7} &lt;script&gt;window.hacked=7&lt;/script&gt;",
]
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => {
    const [r, g, b] = [...rgb(colour)].slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!hasText || !element.checkVisibility() || element.closest("script, noscript")) continue;
    let behind = element;
    while (behind && rgb(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
    const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(light);
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 80)]);
  }
  return found;
}"""


@pytest.fixture
def serve(tmp_path):
    """Serve a store of these pairs."""
    running = []

    def start(pairs, notes=None, *, where=None, port=0, **options):
        store = Store.open(where or tmp_path / f"feedback-{len(running)}.db")
        store.add_pairs(pairs)
        listening = socket.create_server(("127.0.0.1", port))
        port = listening.getsockname()[1]
        app = create_app(store, ServeOptions(port=port, **options), notes)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()

        def stop():
            server.should_exit = True
            thread.join(30)
            listening.close()
            store.close()
            return port

        running.append(stop)
        return SimpleNamespace(store=store, address=f"http://127.0.0.1:{port}", stop=stop)

    yield start
    for stop in running:
        stop()


@pytest.fixture
def open_page(chromium):
    """Open a page which notes every request, error, console line and dialog.

    `.meet` handles every judgement on its way to the server. It is in place before the page is loaded: Chromium may
    say that requests are intercepted a moment before they are.
    """
    contexts = []

    def start(address, **options):
        context = chromium.new_context(viewport={"width": 1280, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        noted = SimpleNamespace(requests=[], trouble=[], meet=let_pass)

        def meet(route):
            noted.meet(route)

        page.route("**/api/judgements", meet)
        page.on("request", lambda request: noted.requests.append(request.url))
        page.on("pageerror", lambda error: noted.trouble.append(f"error {error}"))
        page.on("console", lambda line: noted.trouble.append(f"console {line.text}"))
        page.on("dialog", lambda dialog: (noted.trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.goto(address)
        return page, noted

    yield start
    for context in contexts:
        context.close()


def let_pass(route):
    route.continue_()


def lose(route):
    route.abort()


def numbered(count):
    return [(f"prompt {i}", Candidate(f"older {i}"), Candidate(f"newer {i}")) for i in range(count)]


def wait_for_pair(page, number):
    page.wait_for_selector(f"#heading:text('Pair {number}:')")
    page.wait_for_selector("#asking[data-state=ready]")


def wait_for_words(page, words):
    page.wait_for_function(
        "words => document.getElementById('saved').textContent.startsWith(words)", arg=words
    )


def say(page, key):
    page.wait_for_selector("#asking[data-state=ready]")
    page.keyboard.press(key)


def test_all_pairs_are_judged_by_keyboard_alone(serve, open_page):
    served = serve(numbered(5))
    page, noted = open_page(served.address)
    page.wait_for_selector("#naming:not([hidden])")
    page.keyboard.type("anna 1")
    page.keyboard.press("Enter")
    for number, (key, preferred) in enumerate(
        zip("12tbs", ["left", "right", "tie", "both_bad", "skip"], strict=True)
    ):
        wait_for_pair(page, number + 1)
        left, right = page.inner_text("#left"), page.inner_text("#right")
        assert {left, right} == {f"older {number}", f"newer {number}"}
        page.keyboard.press(key)
        wait_for_words(page, "Saved")
        page.wait_for_function(
            f"document.getElementById('count').textContent.startsWith('{min(number + 1, 4)} of 5')"
        )
        judgement = served.store.judgements()[-1]
        chosen = {"left": left, "right": right}.get(preferred)
        if chosen is None:
            assert judgement.preferred == preferred
        else:
            side = judgement.first if judgement.preferred == "first" else judgement.second
            assert side.text == chosen
        assert judgement.rater == "anna 1"
        assert 0.2 < judgement.seconds < 60
    page.wait_for_selector("#finished:not([hidden])")
    assert page.inner_text("#finished-heading") == "Thank you, nothing left"
    assert page.evaluate("document.activeElement.id") == "finished-heading"
    assert "4 of 5 judged" in page.inner_text("#count")
    assert "s per pair" in page.inner_text("#pace")
    assert noted.trouble == []
    assert noted.requests
    assert all(url.startswith((served.address, "data:")) for url in noted.requests)


def test_buttons_do_what_keys_do(serve, open_page):
    served = serve(numbered(3), rater="anna")
    page, noted = open_page(served.address)
    for number, name in enumerate(["1 is better", "Both bad", "Skip"]):
        wait_for_pair(page, number + 1)
        page.get_by_role("button", name=name).click()
    page.wait_for_selector("#finished:not([hidden])")
    assert [j.preferred for j in served.store.judgements()][1:] == ["both_bad", "skip"]
    page.get_by_role("button", name="Undo").click()
    wait_for_pair(page, 3)
    assert len(served.store.judgements()) == 2
    assert noted.trouble == []


def test_undo_brings_the_pair_and_its_note_back(serve, open_page):
    served = serve(numbered(3), rater="anna")
    page, _ = open_page(served.address)
    wait_for_pair(page, 1)
    shown = page.inner_text("#left")
    page.keyboard.press("n")
    page.keyboard.type("1 is kinder; s, u, t")  # the note takes the keys
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    wait_for_pair(page, 2)
    assert served.store.judgements()[0].note == "1 is kinder; s, u, t"
    assert page.input_value("#note") == ""
    page.keyboard.press("u")
    wait_for_pair(page, 1)
    assert served.store.judgements() == []
    assert page.inner_text("#left") == shown
    assert page.input_value("#note") == "1 is kinder; s, u, t"
    page.keyboard.press("2")
    wait_for_pair(page, 2)
    assert len(served.store.judgements()) == 1


@pytest.mark.slow
def test_a_reload_shows_the_same_sides(serve, open_page):
    served = serve(numbered(4), rater="carla")
    page, _ = open_page(served.address)
    seen = []
    for number in range(4):
        wait_for_pair(page, number + 1)
        left = page.inner_text("#left")
        page.reload()
        wait_for_pair(page, number + 1)
        assert page.inner_text("#left") == left
        seen.append(left.split()[0])
        page.keyboard.press("1")
    page.wait_for_selector("#finished:not([hidden])")
    assert set(seen) == {"older", "newer"}


def test_hostile_text_does_nothing(serve, open_page):
    texts = ["\n\n".join(HOSTILE[start::4]) for start in range(4)]
    pairs = [([{"role": f"<b>{t}</b>", "content": t}], Candidate(t), Candidate(t + " ")) for t in texts]
    served = serve(pairs, rater="<img src=x onerror='window.hacked = 8'>")
    page, noted = open_page(served.address)
    for number in range(len(texts)):
        wait_for_pair(page, number + 1)
        for place in ("#turns", "#left", "#right"):
            inside = page.locator(place).locator("script, img, svg, iframe, style, link, form, b")
            assert inside.count() == 0
        assert page.locator(".written a:not([href^='https://'])").count() == 0
        assert page.locator("[onerror], [onload], [onmouseover], [style]").count() == 0
        page.fill("#note", texts[number])
        page.keyboard.press("Escape")
        page.keyboard.press("1")
    page.wait_for_selector("#finished:not([hidden])")
    page.goto(f"{served.address}/results")
    assert page.locator(".said").count() == len(texts)
    assert page.locator("main :is(script, img, svg, iframe, style, form, b)").count() == 0
    assert page.evaluate("window.hacked") is None
    assert noted.trouble == []
    assert all(url.startswith((served.address, "data:")) for url in noted.requests)


def test_an_answer_survives_a_server_that_fails(serve, open_page):
    served = serve(numbered(2), rater="anna")
    page, noted = open_page(served.address)
    wait_for_pair(page, 1)
    keys = []

    def fail(route):
        keys.append(route.request.post_data_json["key"])
        route.fulfill(status=503, json={"error": "the disk is full"})

    def lose_the_answer(route):
        keys.append(route.request.post_data_json["key"])
        route.fetch()  # it arrives, but what comes back does not
        route.abort()

    noted.meet = fail
    page.keyboard.press("1")
    page.wait_for_selector("#problem:not([hidden])")
    assert "Not saved yet" in page.inner_text("#problem")
    assert "the disk is full" in page.inner_text("#problem")
    assert page.get_attribute("#problem", "role") == "alert"
    assert page.inner_text("#saved") == "Not saved yet"
    page.keyboard.press("2")  # the first answer still stands
    assert page.inner_text("#heading").startswith("Pair 1:")
    noted.meet = lose_the_answer
    page.click("#retry")
    page.wait_for_selector("#problem-text:text('does not answer')")
    noted.meet = let_pass
    with page.expect_request("**/api/judgements") as sent:
        page.click("#retry")
    keys.append(sent.value.post_data_json["key"])
    wait_for_pair(page, 2)
    assert not page.is_visible("#problem")
    assert len(set(keys)) == 1
    assert len(served.store.judgements()) == 1


def test_an_answer_that_was_not_saved_survives_a_reload(serve, open_page):
    served = serve(numbered(2), rater="anna")
    page, noted = open_page(served.address)
    wait_for_pair(page, 1)
    left = page.inner_text("#left")
    page.fill("#note", "kept")
    page.keyboard.press("Escape")
    noted.meet = lose
    page.keyboard.press("1")
    page.wait_for_selector("#problem:not([hidden])")
    noted.meet = let_pass
    page.reload()
    wait_for_pair(page, 2)
    (judgement,) = served.store.judgements()
    assert (judgement.first if judgement.preferred == "first" else judgement.second).text == left
    assert judgement.note == "kept"


def test_a_pair_judged_in_another_window_is_told_and_passed(serve, open_page):
    served = serve(numbered(2), rater="anna")
    pages = [open_page(served.address)[0] for _ in range(2)]
    for page in pages:
        wait_for_pair(page, 1)
    say(pages[0], "1")
    wait_for_pair(pages[0], 2)
    say(pages[1], "2")
    wait_for_pair(pages[1], 2)
    assert "judged pair" in pages[1].inner_text("#problem")
    assert len(served.store.judgements()) == 1


def test_a_double_press_judges_one_pair(serve, open_page):
    served = serve(numbered(3), rater="anna")
    page, _ = open_page(served.address)
    wait_for_pair(page, 1)
    page.evaluate(
        """() => new Promise((done) => {
            const press = () => document.dispatchEvent(new KeyboardEvent("keydown", { key: "1", bubbles: true }));
            const seen = () => document.getElementById("heading").textContent.startsWith("Pair 2:");
            press();
            const timer = setInterval(() => { press(); if (seen()) { press(); clearInterval(timer); done(); } }, 5);
        })"""
    )
    wait_for_pair(page, 2)
    assert len(served.store.judgements()) == 1


def test_a_new_question_moves_the_focus_to_its_heading_and_is_announced(serve, open_page):
    served = serve(numbered(2), rater="anna")
    page, _ = open_page(served.address)
    wait_for_pair(page, 1)
    page.evaluate("window.before = document.activeElement")
    page.get_by_role("button", name="Tie").click()
    wait_for_pair(page, 2)
    assert page.evaluate("document.activeElement.id") == "heading"
    assert page.evaluate("document.activeElement !== window.before")
    assert page.locator("#status[role=status][aria-live=polite]").inner_text() == "Saved: a tie"
    assert page.locator("main").count() == page.locator("h1:visible").count() == 1
    for name in ("Prompt", "Answer 1", "Answer 2", "What you say"):
        assert page.get_by_role("region", name=name).count() == 1
    assert page.get_by_role("textbox", name="Note").count() == 1
    assert page.get_by_role("progressbar", name="Pairs judged").count() == 1


def test_keys_can_be_turned_off(serve, open_page):
    served = serve(numbered(2), rater="anna")
    page, _ = open_page(served.address)
    wait_for_pair(page, 1)
    page.get_by_role("button", name="Shortcut keys: on").click()
    page.keyboard.press("t")
    page.reload()
    wait_for_pair(page, 1)
    page.keyboard.press("t")
    assert page.inner_text("#heading").startswith("Pair 1:")
    page.get_by_role("button", name="Shortcut keys: off").click()
    page.keyboard.press("Tab")
    page.keyboard.press("t")
    wait_for_pair(page, 2)
    assert len(served.store.judgements()) == 1


def test_on_a_phone_answers_are_stacked_and_nothing_scrolls_sideways(serve, open_page):
    long = (
        "word " * 200
        + "x" * 300
        + "\n\n```\n"
        + "code " * 80
        + "\n```\n\n| a | b |\n|---|---|\n| "
        + "y" * 200
        + " | z |"
    )
    served = serve(
        [("https://example.com/" + "p" * 300, Candidate(long), Candidate("short"))], rater="a" * 80
    )
    page, _ = open_page(served.address)
    page.set_viewport_size({"width": 390, "height": 844})
    wait_for_pair(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    left, right = page.locator("#left-card").bounding_box(), page.locator("#right-card").bounding_box()
    assert right["y"] >= left["y"] + left["height"]
    choices = page.locator("#choices").bounding_box()
    assert choices["y"] + choices["height"] <= 844
    assert choices["height"] < 260
    for button in page.locator("#choices .choice").all():
        assert button.bounding_box()["height"] >= 44
    page.click("[data-say=tie]")
    page.wait_for_selector("#finished:not([hidden])")
    page.goto(f"{served.address}/results")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_light_and_dark(serve, open_page, scheme):
    text = "# head\n\n> quoted `code`\n\n[link](https://a.example)\n\n```\ncode\n```\n\n| a |\n|---|\n| b |"
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": text}]
    served = serve([(prompt, Candidate(text), Candidate("b")), *numbered(1)])
    page, noted = open_page(served.address, color_scheme=scheme)
    page.wait_for_selector("#naming:not([hidden])")
    found = page.evaluate(CONTRASTS)
    page.fill("#name", "anna")
    page.keyboard.press("Enter")
    wait_for_pair(page, 1)
    found += page.evaluate(CONTRASTS)
    page.keyboard.press("1")
    wait_for_pair(page, 2)
    noted.meet = lose
    page.keyboard.press("b")
    page.wait_for_selector("#problem:not([hidden])")
    found += page.evaluate(CONTRASTS)
    page.goto(f"{served.address}/results")
    found += page.evaluate(CONTRASTS)
    assert len(found) > 80
    assert [place for place in found if place[0] < 4.5] == []
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", shade)[0]) < 128) == (scheme == "dark")


def test_a_link_on_another_site_lets_the_owner_in(serve, open_page):
    token = "owner-" + "o" * 20
    served = serve(numbered(1), owner_token=token)
    page, _ = open_page("about:blank")
    link = f"<a href='{served.address}/results?token={token}'>results</a>"
    page.route("http://mail.example/", lambda route: route.fulfill(body=link, content_type="text/html"))
    page.goto("http://mail.example/")
    page.click("a")
    page.wait_for_selector("h1:text('Results')")
    assert page.url == f"{served.address}/results"
    assert page.evaluate("document.cookie") == ""


def test_guidelines_are_open_at_first_and_one_key_away(serve, open_page):
    notes = Notes(
        guidelines="Prefer **short** answers. <script>window.hacked = 1</script>", learned=lambda: "so far"
    )
    served = serve([("why", Candidate("a"), Candidate("b"))], notes, rater="ann")
    page, noted = open_page(served.address)
    wait_for_pair(page, 1)
    assert page.is_visible("#guidelines-text strong")
    assert page.inner_text("#learned") == "so far"
    page.keyboard.press("g")
    assert not page.is_visible("#guidelines-text")
    page.keyboard.press("g")
    assert page.is_visible("#guidelines-text")
    page.keyboard.press("1")
    page.wait_for_selector("#finished:not([hidden])")
    assert not page.is_visible("#guidelines")
    assert page.inner_text("#finished #learned") == "so far"
    page.keyboard.press("u")
    wait_for_pair(page, 1)
    assert page.is_visible("#guidelines-text")
    assert page.inner_text("#asking #learned") == "so far"
    assert page.evaluate("window.hacked") is None
    assert noted.trouble == []


def test_a_page_that_waits_for_more_shows_it_as_it_comes_and_how_it_ended(serve, open_page):
    said, drawn = ["The next pairs come by themselves.", "coming"], ["up to 1 more are being drawn"]
    notes = Notes(rest=lambda: tuple(said), drawn=lambda: drawn[0])
    served = serve([("why", Candidate("a"), Candidate("b"))], notes, rater="ann")
    page, _ = open_page(served.address)
    page.wait_for_selector("#asking[data-state=ready]")
    assert page.inner_text("#drawn") == "up to 1 more are being drawn"
    drawn[0] = ""
    page.keyboard.press("1")
    page.wait_for_selector("#finished:not([hidden])")
    assert page.inner_text("#finished-heading") == "Thank you, more is coming"
    assert page.inner_text("#rest") == said[0]
    served.store.add_pairs([("what", Candidate("c"), Candidate("d"))])
    page.wait_for_selector("#asking[data-state=ready]:not([hidden])", timeout=10_000)
    page.keyboard.press("2")
    page.wait_for_selector("#finished:not([hidden])")
    assert not page.is_visible("#drawn")
    said[:] = ["The run has finished.", "over"]
    page.wait_for_selector("#finished-heading:has-text('that was all')", timeout=10_000)
    assert page.inner_text("#rest") == "The run has finished."
    assert not page.is_visible("#again")
    assert served.store.progress("ann").num_own == 2


def test_a_half_typed_note_is_kept_over_a_reload_until_the_answer_is_sent(serve, open_page):
    served = serve(numbered(2), rater="anna")
    page, noted = open_page(served.address)
    wait_for_pair(page, 1)
    page.fill("#note", "half a tho")
    page.reload()
    wait_for_pair(page, 1)
    assert page.input_value("#note") == "half a tho"
    page.fill("#note", "half a thought")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    wait_for_pair(page, 2)
    assert page.input_value("#note") == ""
    assert page.evaluate("localStorage.length") == 0
    page.reload()
    wait_for_pair(page, 2)
    assert page.input_value("#note") == ""
    assert [judgement.note for judgement in served.store.judgements()] == ["half a thought"]
    assert noted.trouble == []


def test_a_note_is_forgotten_with_the_last_pair_and_comes_back_by_undo_and_reload(serve, open_page):
    served = serve(numbered(1), rater="anna")
    page, _ = open_page(served.address)
    wait_for_pair(page, 1)
    page.fill("#note", "last words")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.wait_for_selector("#finished:not([hidden])")
    assert page.evaluate("localStorage.length") == 0
    page.keyboard.press("u")
    wait_for_pair(page, 1)
    page.reload()
    wait_for_pair(page, 1)
    assert page.input_value("#note") == "last words"


@pytest.mark.slow
def test_a_half_typed_note_is_kept_over_a_restart_of_the_server(serve, open_page):
    served = serve(numbered(2), rater="anna")
    page, _ = open_page(served.address)
    wait_for_pair(page, 1)
    page.fill("#note", "kept")
    again = serve((), where=served.store.where, port=served.stop(), rater="anna")
    page.goto(again.address)
    wait_for_pair(page, 1)
    assert page.input_value("#note") == "kept"
    other = serve(numbered(2), port=again.stop(), rater="anna")  # the same pairs in another store
    page.goto(other.address)
    wait_for_pair(page, 1)
    assert page.input_value("#note") == ""


def test_nothing_is_kept_of_another_raters_note(serve, open_page):
    served = serve(numbered(1), per_pair=2)
    page, _ = open_page(served.address)
    for name in ("anna", "bob"):
        page.wait_for_selector("#naming:not([hidden])")
        page.fill("#name", name)
        page.keyboard.press("Enter")
        wait_for_pair(page, 1)
        page.wait_for_selector(f"#who:text('{name}')")
        assert page.input_value("#note") == ""
        assert "anna's own" not in page.evaluate("JSON.stringify({ ...localStorage, ...sessionStorage })")
        page.fill("#note", f"{name}'s own")
        page.click("#rename")
    page.reload()
    wait_for_pair(page, 1)
    assert page.input_value("#note") == "bob's own"


def test_a_note_in_one_store_is_not_kept_when_another_rater_judges_in_another(serve, open_page):
    served = serve(numbered(1), rater="anna")
    page, _ = open_page(served.address)
    wait_for_pair(page, 1)
    page.fill("#note", "anna's own")
    other = serve(numbered(1), port=served.stop(), rater="bob")
    page.goto(other.address)
    wait_for_pair(page, 1)
    assert page.evaluate("localStorage.length") == 0
