#!/usr/bin/env python3
"""The chat page of a running `ernie serve`, as a person meets it in a real browser.

    .ci/page_test.py http://127.0.0.1:8080 [--key KEY] [--pictures DIR]

Needs the package playwright (PyPI) and a Chromium: one on the PATH, or playwright's own. Where either is missing it says
so in one line and exits 77. Exits 1 when a check failed. Any model will do; checks that must see an answer on its way
slow the browser's network down, so they do not depend on the model's speed.
"""

import argparse
import json
import pathlib
import shutil
import sys
import traceback

try:
    from playwright.sync_api import Error, expect, sync_playwright
except ImportError:
    print("skipped: the chat page is not tested, the Python package playwright is not installed")
    sys.exit(77)

# What the browser must not have to say, at any time and anywhere.
WATCH = "addEventListener('securitypolicyviolation', e => console.error('CSP: ' + e.violatedDirective + ' ' + e.blockedURI))"
SLOW = 1500  # bytes a second: some five tokens


class Visit:
    """One browser context on the page, with what went wrong in it."""

    def __init__(self, browser, arguments, width=1280, height=860, **context):
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.context.add_init_script(WATCH)
        self.page = self.context.new_page()
        self.network = self.context.new_cdp_session(self.page)
        self.wrong = []
        self.sent = []
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self.note)
        self.page.route("**/v1/chat/completions", self.forward)
        self.endless = False
        self.response = self.page.goto(arguments.url)
        if arguments.key:
            expect(self.page.locator("#state")).to_have_text("needs a key")
            self.page.fill("#key", arguments.key)
            self.page.check("#keep-key")
            self.page.press("#key", "Enter")
            self.wrong.clear()  # the browser logs the 401 that asked for the key
        expect(self.page.locator("#state")).to_have_text("ready", timeout=60_000)
        if self.page.locator("#settings").is_visible():
            self.page.click("#close-settings")
            self.page.click("#say")
        self.say = self.page.locator("#say")
        self.asked = self.page.locator(".asked .said")
        self.answers = self.page.locator(".answer .text")

    def note(self, request):
        if request.url.endswith("/v1/chat/completions"):
            self.sent.append(json.loads(request.post_data))

    def forward(self, route):
        """A model may be done after a word; where a check watches an answer come, it goes on to the limit of tokens."""
        if not self.endless:
            return route.continue_()
        return route.continue_(post_data=json.loads(route.request.post_data) | {"ignore_eos": True})

    def settings(self, **values):
        self.page.keyboard.press("Alt+s")
        for name, value in values.items():
            self.page.fill(f"#sampling [name={name}]", str(value))
        self.page.click("#close-settings")

    def slow(self, bytes_per_second):
        self.network.send("Network.emulateNetworkConditions",
                          {"offline": False, "latency": 0, "downloadThroughput": bytes_per_second, "uploadThroughput": -1})

    def send(self, text, wait=True):
        self.say.fill(text)
        self.say.press("Enter")
        if wait:
            self.idle()

    def idle(self):
        expect(self.page.locator("#send")).to_have_attribute("aria-label", "Send", timeout=120_000)
        expect(self.page.locator("#fault")).to_be_hidden()

    def texts(self):
        return self.asked.all_text_contents(), self.answers.all_text_contents()


def loads(visit):
    page = visit.page
    assert page.locator("#model").input_value(), "no model is named"
    policy = visit.response.headers.get("content-security-policy", "")
    assert "default-src 'none'" in policy and "unsafe" not in policy, f"the policy is {policy!r}"
    origin = page.url.rstrip("/")
    loaded = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith((origin, "data:")) for name in loaded), f"outside assets: {loaded}"
    expect(visit.say).to_be_focused()


def streams(visit):
    visit.settings(max_tokens=60)
    visit.endless = True
    visit.slow(SLOW)
    visit.send("Say something.", wait=False)
    expect(visit.asked).to_have_text("Say something.")
    seen = set()
    answer = visit.page.locator(".answer")
    while visit.page.locator("#send[aria-label=Stop]").count() and len(seen) < 4:
        seen.add(len(answer.inner_text()))
        visit.page.wait_for_timeout(100)
    assert len(seen) > 2, f"the answer did not grow on screen: {seen}"
    visit.slow(-1)
    visit.idle()
    visit.endless = False
    expect(visit.page.locator(".answer .foot")).to_contain_text("tokens/s")
    request = visit.sent[-1]
    assert request["stream"] and request["stream_options"] == {"include_usage": True}, request
    assert request["max_tokens"] == 60 and "top_p" not in request, request


def stops(visit):
    visit.endless = True
    visit.slow(SLOW)
    visit.send("And now without end.", wait=False)
    expect(visit.page.locator(".answer .foot").last).to_contain_text("tokens/s")
    visit.page.keyboard.press("Escape")
    visit.idle()
    visit.endless = False
    visit.slow(-1)
    expect(visit.page.locator(".answer .foot").last).to_contain_text("Stopped.")
    expect(visit.say).to_be_focused()


def regenerates(visit):
    last = visit.page.locator(".answer").last
    last.get_by_label("Regenerate").click()
    visit.idle()
    expect(last.locator(".which")).to_contain_text("2/2")
    last.get_by_label("Earlier version").click()
    expect(last.locator(".which")).to_contain_text("1/2")
    expect(last.locator(".foot")).to_contain_text("Stopped.")
    visit.page.keyboard.press("Alt+r")
    visit.idle()
    expect(last.locator(".which")).to_contain_text("3/3")
    assert visit.sent[-1]["messages"][-1]["content"] == "And now without end."


def edits(visit):
    before = visit.texts()
    visit.page.locator(".asked").first.hover()
    visit.page.locator(".asked").first.get_by_label("Edit").click()
    box = visit.page.get_by_label("Edit your message")
    expect(box).to_have_value("Say something.")
    box.press("Escape")
    assert visit.texts() == before, "giving up an edit changed something"
    visit.page.locator(".asked").first.hover()
    visit.page.locator(".asked").first.get_by_label("Edit").click()
    box.fill("Say something else.")
    box.press("Enter")
    visit.idle()
    assert visit.texts()[0] == ["Say something else."], visit.texts()
    assert [m["content"] for m in visit.sent[-1]["messages"]] == ["Say something else."]
    visit.page.locator(".asked").first.get_by_label("Earlier version").click()
    assert visit.texts() == before, "the earlier branch is not what it was"


def reloads(visit):
    before = visit.texts()
    visit.page.reload()
    expect(visit.page.locator("#state")).to_have_text("ready")
    assert visit.texts() == before, "the chat is not what it was before the reload"
    expect(visit.page.locator("#list .open[aria-current=true]")).to_have_text("Say something.")


def shows_text_as_text(visit):
    visit.page.keyboard.press("Alt+n")
    visit.send("<img src=x onerror=alert(1)><b>no</b> **plain** [a](javascript:alert(1))")
    expect(visit.asked).to_have_text("<img src=x onerror=alert(1)><b>no</b> **plain** [a](javascript:alert(1))")
    assert visit.page.locator(".turn img, .turn script, a[href^=javascript]").count() == 0


def keeps_chats(visit):
    page = visit.page
    rows = page.locator("#list .open")
    expect(rows).to_have_count(2)
    rows.last.hover()
    page.locator("#list li").last.get_by_label("Rename").click()
    page.get_by_label("Name of the chat").fill("renamed")
    page.get_by_label("Name of the chat").press("Enter")
    expect(rows.first).to_have_text("renamed")
    with page.expect_download() as download:
        page.click("#export-all")
    chats = json.loads(pathlib.Path(download.value.path()).read_text())
    assert len(chats) == 2 and chats[0]["title"] == "renamed" and chats[0]["messages"][0]["role"] == "user", chats
    rows.first.hover()
    page.locator("#list li").first.get_by_label("Delete").click()
    expect(rows).to_have_count(1)
    page.get_by_text("Undo").click()
    expect(rows).to_have_count(2)
    expect(rows.first).to_have_text("renamed")


def holds_settings(visit):
    page = visit.page
    visit.settings(temperature=9)
    count = len(visit.sent)
    visit.say.fill("too hot")
    visit.say.press("Enter")
    expect(page.locator("#notice")).to_contain_text("Temperature")
    expect(page.locator("[name=temperature]")).to_be_focused()
    assert len(visit.sent) == count, "a temperature of 9 was sent"
    page.click("#reset")
    page.fill("[name=temperature]", "0.7")
    page.fill("[name=max_tokens]", "4")
    page.fill("[name=stop]", "one\\n\ntwo")
    page.fill("#system", "Be brief.")
    page.click("#close-settings")
    visit.say.press("Enter")
    visit.idle()
    request = visit.sent[-1]
    assert request["temperature"] == 0.7 and request["max_tokens"] == 4 and request["stop"] == ["one\n", "two"], request
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}, request
    assert "seed" not in request and "top_k" not in request, request


def keyboard(visit):
    page = visit.page
    page.reload()
    page.locator("#close-chats").focus()
    page.keyboard.press("Shift+Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(visit.say).to_be_focused()
    count = len(visit.sent)
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(visit.say).to_have_value("one\ntwo")
    visit.say.dispatch_event("keydown", {"key": "Enter", "isComposing": True})  # the Enter that ends a word of an input method
    assert len(visit.sent) == count and visit.say.input_value(), "Enter sent in the middle of a composition"
    page.keyboard.press("Tab")
    expect(page.locator("#send")).to_be_focused()
    visit.say.fill("")
    visit.say.press("ArrowUp")
    expect(page.get_by_label("Edit your message")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+k")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()
    page.keyboard.press("Alt+s")
    expect(page.locator("#system")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()


def themes(visit):
    ground = lambda: visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = ground()
    visit.page.get_by_label("Theme: as the system").click()
    visit.page.get_by_label("Theme: light").click()
    visit.page.get_by_label("Theme: dark").wait_for()
    dark = ground()
    assert dark != light, f"dark and light are both {light}"
    visit.page.reload()
    assert ground() == dark, "the theme is forgotten"
    visit.page.get_by_label("Theme: dark").click()
    visit.page.emulate_media(color_scheme="dark")
    assert ground() == dark, "the page does not follow the system"


def phone(visit):
    page = visit.page
    width = lambda: page.evaluate("Math.max(document.documentElement.scrollWidth, document.getElementById('scroll').scrollWidth)")
    assert width() <= 360, f"{width()} px wide when empty"
    visit.settings(max_tokens=40)
    visit.send("A message with averyveryveryveryveryveryveryveryveryveryveryveryverylongwordinit.")
    assert width() <= 360, f"{width()} px wide with an answer"
    for name in ("chats", "settings"):
        page.click(f"#toggle-{name}")
        expect(page.locator(f"#{name}")).to_be_in_viewport()
        assert width() <= 360, f"{width()} px wide with the {name}"
        page.keyboard.press("Escape")
        expect(page.locator(f"#{name}")).to_be_hidden()
    small = page.evaluate("""[...document.querySelectorAll('button')].filter(b => b.offsetParent)
        .map(b => b.getBoundingClientRect()).filter(r => r.width < 24 || r.height < 24).length""")
    assert small == 0, f"{small} buttons are smaller than 24 px"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--key", default="", help="an API key of the server")
    parser.add_argument("--pictures", type=pathlib.Path, help="a folder for what the browser showed at the end")
    arguments = parser.parse_args()

    expect.set_options(timeout=20_000)
    passed = failed = 0
    with sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        found = next(filter(None, map(shutil.which, names)), None)
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            print(f"skipped: the chat page is not tested, no Chromium starts here ({error.message.splitlines()[0]})")
            return 77
        desk = [loads, streams, stops, regenerates, edits, reloads, shows_text_as_text, keeps_chats, holds_settings, keyboard, themes]
        visits = [("desk", {}, desk), ("phone", {"width": 360, "height": 740, "has_touch": True, "is_mobile": True}, [phone])]
        for place, context, checks in visits:
            try:
                visit = Visit(browser, arguments, **context)
            except (AssertionError, Error):
                traceback.print_exc(limit=2)
                print(f"FAIL {place}: the page does not come up")
                failed += len(checks)
                continue
            for check in checks:
                name = check.__name__.replace("_", " ")
                try:
                    check(visit)
                    assert not visit.wrong, f"the browser says {visit.wrong}"
                    print(f"ok   {place}: {name}")
                    passed += 1
                except (AssertionError, Error):
                    traceback.print_exc(limit=2)
                    print(f"FAIL {place}: {name}")
                    failed += 1
                visit.wrong.clear()
            if arguments.pictures:
                arguments.pictures.mkdir(parents=True, exist_ok=True)
                visit.page.screenshot(path=arguments.pictures / f"{place}.png")
            visit.context.close()
        browser.close()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
