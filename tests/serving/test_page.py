"""The page of `kubealign serve` in a real browser: streams, blind votes, errors; nothing that a model writes is markup.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.records import Record
from alignment.records.importers import Row, import_rows
from tests.serving.browser import PAGE, Browser, events, served


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


def opened(browser: Browser, url: str, second: str = "", **window: Any) -> None:
    browser.open(url, **window)
    browser.wait("at('model-a').options.length > 1")
    browser.js(f"(at('model-b').value = '{second}', at('model-b').dispatchEvent(new Event('change')), "
               "at('message').focus())")


def ask(browser: Browser, text: str) -> None:
    browser.js("at('message').focus()")
    browser.type(f"{text}\n")


def texts(browser: Browser) -> list[str]:
    found: list[str] = browser.js("[...document.querySelectorAll('article .text')].map((one) => one.textContent)")
    return found


def by_name(body: dict[str, Any]) -> Iterator[bytes]:
    return events(f"I am {body['model']}", ".")


def test_the_page_asks_nobody_but_its_server() -> None:
    source = PAGE.read_text(encoding="utf-8")
    assert not re.findall(r"https?://|src=|href=|@import|url\(|innerHTML|insertAdjacentHTML|document\.write|eval\(|Storage",
                          source)


def test_an_answer_comes_word_by_word_and_is_never_markup(browser: Browser) -> None:
    said = '<img src=x onerror="window.hurt = 1"><b>bold</b> & नमस्ते 深さ\u202e\n- <script>window.hurt = 2</script>'
    more = threading.Event()

    def answer(body: dict[str, Any]) -> Iterator[bytes]:
        whole = b"".join(events(*said))
        yield whole[:-40]
        more.wait(10)
        for byte in whole[-40:]:
            yield bytes([byte])

    with served(answer) as server:
        opened(browser, server.url)
        ask(browser, "<i>Who?</i>")
        browser.wait("document.querySelector('article .text').textContent.length > 20")
        assert browser.js("document.querySelector('article').getAttribute('aria-busy')") == "true"
        assert browser.js("!at('stop').hidden && at('send').hidden")
        more.set()
        browser.wait("document.querySelector('article').getAttribute('aria-busy') === 'false'")
        assert texts(browser) == [said]
        assert browser.js("document.querySelectorAll('article img, article b, article script, .mine i').length") == 0
        assert browser.js("window.hurt === undefined")
        ask(browser, "And now?")
        browser.wait("document.querySelectorAll('article[aria-busy=false]').length === 2")
        assert [turn["content"] for turn in server.asked[1]["messages"]] == ["<i>Who?</i>", said, "And now?"]
        assert browser.js("[...at('model-a').options].map((one) => one.value)") == [
            "base", "dpo", "late"]  # a reward model does not answer
        assert browser.errors == []


@pytest.mark.parametrize(("vote", "drawn", "goes_on"), [("a", 1, "dpo"), ("b", 0, "dpo"), ("tie", 0, "base")])
def test_a_blind_vote_is_a_row_to_train_on_and_the_chat_goes_on_from_the_better_answer(
    browser: Browser, vote: str, drawn: int, goes_on: str
) -> None:
    with served(by_name) as server:
        opened(browser, server.url, "dpo")
        browser.js(f"(at('system').value = 'Be brief.', crypto.getRandomValues = () => [{drawn}], 0)")
        ask(browser, "Who?")
        browser.wait("document.querySelector('fieldset.vote')")
        heads = "[...document.querySelectorAll('article h3')].map((one) => one.textContent).join()"
        assert browser.js(heads) == "Answer A,Answer B"
        ask(browser, "not yet")
        assert len(server.asked) == 2
        browser.js(f"document.querySelector('[data-vote={vote}]').click()")
        browser.wait("document.querySelector('.kept')")
        names = ["dpo", "base"] if drawn else ["base", "dpo"]
        assert browser.js(heads) == ",".join(names)
        [row] = server.votes
        assert (row["models"], row["vote"]) == (dict(zip("ab", names, strict=True)), vote)
        assert row["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
        [record] = import_rows([Row(1, row)], "votes", "votes")
        if vote == "tie":
            assert not isinstance(record, Record)
        else:
            assert isinstance(record, Record)
            assert (record.completion, record.rejected) == ("I am dpo.", "I am base.")
            assert (record.meta["chosen_by"], record.meta["rejected_by"]) == ("dpo", "base")
        browser.js("at('message').value = ''")
        ask(browser, "Go on.")
        browser.wait("document.querySelectorAll('article[aria-busy=false]').length === 4")
        for body in server.asked[2:]:
            assert [turn["content"] for turn in body["messages"]] == ["Be brief.", "Who?", f"I am {goes_on}.", "Go on."]


def test_a_vote_that_is_not_kept_can_be_cast_again(browser: Browser) -> None:
    with served(by_name, keeps_votes=False) as server:
        opened(browser, server.url, "dpo")
        ask(browser, "Who?")
        browser.wait("document.querySelector('fieldset.vote')")
        browser.js("document.querySelector('[data-vote=bad]').click()")
        browser.wait("document.querySelector('fieldset.vote .error')")
        assert "404 Not Found: votes are not kept here" in browser.js(
            "document.querySelector('fieldset .error').textContent")
        server.keeps_votes = True
        browser.js("document.querySelector('[data-vote=bad]').click()")
        browser.wait("document.querySelector('.kept')")
        assert (server.votes[0]["chosen"], server.votes[0]["rejected"]) == (None, None)
        ask(browser, "Go on.")
        browser.wait("document.querySelectorAll('article[aria-busy=false]').length === 4")
        assert [turn["content"] for turn in server.asked[-1]["messages"]] == ["Go on."]


def test_troubles_are_said_where_they_are(browser: Browser) -> None:
    def answer(body: dict[str, Any]) -> Any:
        question = body["messages"][-1]["content"]
        if question == "refuse" and body["model"] == "base":
            return 429, "too many requests"
        if question == "break":
            return events("Half an", reason=None)
        return by_name(body)

    with served(answer, key="secret-1") as server:
        browser.open(server.url)
        browser.wait("!at('trouble').hidden")
        assert browser.js("at('trouble').textContent") == "401 Unauthorized: this server asks for its API key"
        assert browser.js("document.activeElement.id") == "key"
        browser.type("secret-1")
        browser.js("at('key').dispatchEvent(new Event('change'))")
        browser.wait("at('trouble').hidden && at('model-a').options.length > 1")
        assert browser.js("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        browser.js("(at('model-b').value = 'dpo', at('model-b').dispatchEvent(new Event('change')))")
        ask(browser, "refuse")
        browser.wait("document.querySelector('article .error')")
        browser.wait("document.querySelectorAll('article[aria-busy=false]').length === 2")
        assert "429 Too Many Requests: too many requests" in browser.js(
            "document.querySelector('article .error').textContent")
        assert not browser.js("Boolean(document.querySelector('fieldset.vote'))")
        browser.js("(at('model-b').value = '', at('model-b').dispatchEvent(new Event('change')))")
        ask(browser, "break")
        browser.wait("document.querySelectorAll('article .error').length === 2")
        assert texts(browser)[-1] == "Half an"
        assert "broke off" in browser.js("[...document.querySelectorAll('article .error')].pop().textContent")
        ask(browser, "fine")
        browser.wait("document.querySelectorAll('article[aria-busy=false]').length === 4")
        assert [turn["content"] for turn in server.asked[-1]["messages"]] == ["refuse", "I am dpo.", "fine"]


def test_an_answer_can_be_stopped_and_is_kept_as_far_as_it_came(browser: Browser) -> None:
    over = threading.Event()

    def answer(body: dict[str, Any]) -> Iterator[bytes]:
        yield from events("One, two", reason=None)
        over.wait(10)

    with served(answer) as server:
        opened(browser, server.url)
        ask(browser, "Count.")
        browser.wait("document.querySelector('article .text').textContent === 'One, two'")
        browser.js("at('stop').click()")
        browser.wait("document.querySelector('article .note')")
        over.set()
        ask(browser, "Go on.")
        browser.wait("document.querySelectorAll('article[aria-busy=false]').length === 2")
        assert [turn["content"] for turn in server.asked[-1]["messages"]] == ["Count.", "One, two", "Go on."]


def test_it_fits_a_phone_and_a_dark_room(browser: Browser, tmp_path: Path) -> None:
    with served(by_name) as server:
        opened(browser, server.url, "dpo", columns=390, rows=844, dark=True)
        ask(browser, "Who? " + "w" * 200)
        browser.wait("document.querySelector('fieldset.vote')")
        assert browser.js("document.documentElement.scrollWidth") == 390
        assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 26)"
        below = "document.querySelectorAll('article')[{}].getBoundingClientRect()"
        assert browser.js(f"{below.format(1)}.top >= {below.format(0)}.bottom")
        last = "[...document.querySelectorAll('fieldset.vote button')].pop().getBoundingClientRect()"
        assert browser.js(f"{last}.bottom <= at('composer').getBoundingClientRect().top")
        assert browser.js("[...document.querySelectorAll('select, input, textarea')]"
                          ".every((one) => one.labels.length === 1 && one.labels[0].textContent.trim())")
