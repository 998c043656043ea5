"""The report's HTML page, opened from a file in Debian's Chromium and used by mouse and by keyboard."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from callbacks.paired_records import GradedSample, PairedRecord
from callbacks.removability_files import append_summary, write_records
from callbacks.removability_metrics import summarise_groups
from cli.report import report, report_cli
from cli.report_page import packed, records_files, write_page
from cli.report_runs import read_runs

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it is in the extra `dev`")
expect = playwright.expect

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGS = (
    "--headless",
    "--no-sandbox",  # tests often run as root, in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}: apt-get install chromium")

# Verdict -> reasons without and with the context.
REASONS = {
    "harm": ("correct", "wrong"),
    "help": ("no_answer", "correct"),
    "both": ("correct", "correct"),
    "neither": ("wrong", "several_answers"),
}


def record(id_: str, verdict: str = "both", **changes) -> PairedRecord:
    without, with_ = REASONS[verdict]
    values = {
        "id": id_,
        "group": "seen" if int(re.sub(r"\D", "", id_) or 0) % 2 else "unseen",
        "answer": "Asia",
        "question": f"Which continent is city {id_} in?",
        "completion_no_context": "It is in Asia.",
        "completion_with_context": "It lies in Europe, I think." if verdict == "harm" else "It is in Asia.",
        "parsed_no_context": "Asia",
        "parsed_with_context": "Europe" if verdict == "harm" else "Asia",
        "reason_no_context": without,
        "reason_with_context": with_,
        "length_no_context": 5,
        "length_with_context": 7,
        "finished_no_context": True,
        "finished_with_context": True,
        "kl": 0.25,
        "num_kl_tokens": 5,
    }
    return PairedRecord(**{**values, **changes})


def evaluate(run: Path, records: list[PairedRecord], step: int, split: str = "", context: str = "") -> Path:
    """Leave behind what an evaluation does; returns the file of records."""
    name = f"{split}-" * bool(split) + f"step={step:06d}" + f".{context}" * bool(context) + ".jsonl"
    path = run / "removability" / name
    write_records(path, records)
    summaries = summarise_groups(records)
    append_summary(run / "removability/summary.jsonl", step, split or "val", summaries, 1.0, context or "original")
    return path


def page_of(tmp_path: Path, *runs: Path, all_steps: bool = False) -> Path:
    path = tmp_path / "page with spaces & ünïcode.html"
    write_page(read_runs(runs), path, all_steps)
    return path


# 3 harm, 2 help, 4 both, 1 neither
VERDICTS = ["harm", "both", "help", "both", "harm", "neither", "both", "help", "harm", "both"]
TEN = [record(f"city-{number}", verdict) for number, verdict in enumerate(VERDICTS)]
UNTRAINED = [record(f"city-{number}", "neither") for number in range(10)]


@pytest.fixture
def run(tmp_path) -> Path:
    evaluate(tmp_path / "opd", UNTRAINED, 0)
    evaluate(tmp_path / "opd", TEN, 40)
    return tmp_path / "opd"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGS, headless=True)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser) -> Iterator:
    """A fresh tab; afterwards: nothing but the page's own file was asked for, nothing popped up, nothing failed."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    tab = context.new_page()
    requests, troubles = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("console", lambda message: troubles.append(message.text))
    yield tab
    context.close()
    assert [url for url in requests if not url.startswith("file:")] == []
    assert troubles == []


def visit(tab, path: Path, address: str = "") -> None:
    tab.goto(path.as_uri() + address)
    expect(tab.locator("#status")).to_contain_text(re.compile(r"of [\d,]+ item"))


def shown_ids(tab) -> list[str]:
    return tab.locator("#list .row-id").all_inner_texts()


def chosen_id(tab) -> str:
    """The item on show; the list and the item must agree on it."""
    id_ = tab.locator("#item h2").inner_text()
    assert tab.locator("#list [aria-selected=true] .row-id").all_inner_texts() == [id_]
    return id_


def counts(tab) -> dict[str, str]:
    return {name: tab.locator(f"#count-{name}").inner_text() for name in ("all", *REASONS)}


@needs_chromium
def test_filters_show_their_items_and_counts(run, tab, tmp_path):
    visit(tab, page_of(tmp_path, run))
    assert counts(tab) == {"all": "10", "harm": "3", "help": "2", "both": "4", "neither": "1"}
    assert shown_ids(tab) == [r.id for r in TEN]
    for name in REASONS:
        tab.locator(f".filter.{name}").click()
        assert shown_ids(tab) == [f"city-{number}" for number, verdict in enumerate(VERDICTS) if verdict == name]
        expect(tab.locator("#status")).to_have_text(f"{VERDICTS.count(name)} of 10 items: {name}")
        assert f"show={name}" in tab.url
    tab.locator(".filter.harm").click()
    tab.locator("#group").select_option("seen")
    assert shown_ids(tab) == []  # cities 0, 4 and 8 are harmed
    expect(tab.locator("#list")).to_contain_text("No item is left")
    assert counts(tab) == {"all": "5", "harm": "0", "help": "1", "both": "3", "neither": "1"}


@needs_chromium
def test_search_reads_question_answer_both_completions_and_id(tab, tmp_path):
    records = [
        record("one", question="Where is the RIVER Ob?"),
        record("two", answer="Asia (the river bank)"),
        record("three", completion_no_context="by the river"),
        record("four", completion_with_context="a\nriver"),
        record("river-five"),
        record("six", completion_with_context="It is in Europe."),
    ]
    evaluate(tmp_path / "opd", records, 40)
    visit(tab, page_of(tmp_path, tmp_path / "opd"))
    tab.locator("#search").fill("River")
    expect(tab.locator("#status")).to_have_text("5 of 6 items: “River”")
    assert shown_ids(tab) == ["one", "two", "three", "four", "river-five"]
    hits = "[...CSS.highlights.get('hits')].map((range) => range.toString())"
    assert tab.evaluate(hits) == ["RIVER"]
    tab.locator("#search").fill("river b")
    expect(tab.locator("#status")).to_have_text("1 of 6 items: “river b”")
    assert shown_ids(tab) == ["two"]
    tab.locator("#search").fill("it is in asia")  # marks of differing words cut through it
    tab.locator("#list .row-id", has_text="six").click()
    assert tab.evaluate(hits) == ["It is in Asia"]
    tab.locator("#search").fill("")
    expect(tab.locator("#status")).to_have_text("6 of 6 items")
    assert tab.evaluate(hits) == []


@needs_chromium
def test_differing_words_are_marked_and_the_texts_stay_as_they_are(tab, tmp_path):
    pairs = {
        "words": ("It is in Asia, surely.", "It is in Europe, surely not."),
        "lines": ("first\n  second\n\nthird", "first\nsecond\nthird"),
        "unspaced": ("東京は日本", "大阪は日本"),
        "equal": ("the same", "the same"),
        "empty": ("", "something"),
        "unlike": (" ".join(f"a{n}" for n in range(2500)), " ".join(f"b{n}" for n in range(2500))),
    }
    draw = random.Random(0)
    for number in range(30):
        words = [[draw.choice("abc?\né") for _ in range(draw.randrange(30))] for _ in range(2)]
        pairs[f"random-{number}"] = tuple(draw.choice(["", " "]).join(each) for each in words)
    records = [
        record(id_, completion_no_context=left, completion_with_context=right) for id_, (left, right) in pairs.items()
    ]
    evaluate(tmp_path / "opd", records, 40)
    visit(tab, page_of(tmp_path, tmp_path / "opd"))
    read = """() => [...document.querySelectorAll(".view")].map((view) => {
        const text = view.querySelector(".completion") ?? document.createElement("p");
        const marked = [...text.querySelectorAll("del, ins")].map((mark) => mark.textContent);
        const kept = [...text.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((n) => n.data);
        return {whole: text.textContent, marked, kept: kept.join("")};
    })"""
    seen = {}
    for id_, texts in pairs.items():
        left, right = seen[id_] = tab.evaluate(read)
        assert (left["whole"], right["whole"]) == texts
        assert left["kept"] == right["kept"]  # what is not marked is common to both, in the same order
        tab.keyboard.press("j")
    assert [side["marked"] for side in seen["words"]] == [["Asia"], ["Europe", " not"]]
    assert [side["marked"] for side in seen["unspaced"]] == [["東京"], ["大阪"]]
    assert [side["marked"] for side in seen["equal"]] == [[], []]
    assert [side["marked"] for side in seen["empty"]] == [[], ["something"]]
    assert [len(side["marked"]) for side in seen["unlike"]] == [1, 1]
    tab.keyboard.press("Home")
    tab.keyboard.press("d")
    expect(tab.locator("#item")).to_contain_text("not marked")
    assert tab.locator("#item del, #item ins").count() == 0


@needs_chromium
def test_marks_differ_in_more_than_colour(run, tab, tmp_path):
    visit(tab, page_of(tmp_path, run), "#show=harm")
    styles = [
        tab.locator(f".completion {tag}").first.evaluate(
            "e => getComputedStyle(e).textDecorationLine + ' ' + getComputedStyle(e).textDecorationStyle"
        )
        for tag in ("del", "ins")
    ]
    assert styles == ["underline dashed", "underline solid"]


@needs_chromium
def test_the_keyboard_alone_is_enough(run, tab, tmp_path):
    visit(tab, page_of(tmp_path, run))
    press = tab.keyboard.press
    expect(tab.locator("#list")).to_be_focused()
    for key, id_ in (("j", 1), ("ArrowDown", 2), ("k", 1), ("End", 9), ("j", 9), ("ArrowUp", 8), ("Home", 0), ("k", 0)):
        press(key)
        assert chosen_id(tab) == f"city-{id_}"
    active = tab.locator("#list").get_attribute("aria-activedescendant")
    option = tab.locator(f"#{active}")
    assert option.get_attribute("aria-posinset") == "1"
    assert option.get_attribute("aria-setsize") == "10"
    press("1")
    expect(tab.locator("#status")).to_have_text("3 of 10 items: harm")
    press("j")
    assert chosen_id(tab) == "city-4"
    press("0")
    assert chosen_id(tab) == "city-4"  # still there, so it stays
    press("/")
    tab.keyboard.type("city-2 jk1?")
    expect(tab.locator("#status")).to_have_text("0 of 10 items: “city-2 jk1?”")  # typed, not taken for keys
    press("Escape")
    expect(tab.locator("#search")).to_have_value("")
    expect(tab.locator("#status")).to_have_text("10 of 10 items")
    tab.keyboard.type("city")
    press("ArrowDown")
    assert chosen_id(tab) == "city-1"
    press("Escape")
    press("Escape")
    expect(tab.locator("#list")).to_be_focused()
    press("Enter")
    expect(tab.locator("#item")).to_be_focused()
    press("Escape")
    press("?")
    expect(tab.locator("#help")).to_be_visible()
    press("j")
    press("Escape")
    expect(tab.locator("#help")).to_be_hidden()
    assert chosen_id(tab) == "city-1"
    expect(tab.locator("#list")).to_be_focused()


@needs_chromium
def test_letters_can_be_switched_off(run, tab, tmp_path):
    visit(tab, page_of(tmp_path, run))
    tab.locator("#show-help").click()
    tab.locator("#letters").uncheck()
    tab.get_by_role("button", name="Close").click()
    tab.locator("#list").focus()
    tab.keyboard.press("j")
    tab.keyboard.press("1")
    assert chosen_id(tab) == "city-0"
    tab.keyboard.press("ArrowDown")
    assert chosen_id(tab) == "city-1"


@needs_chromium
def test_every_control_shows_its_focus_and_has_a_name(run, tab, tmp_path):
    visit(tab, page_of(tmp_path, run))
    tab.locator("#run").focus()
    tab.keyboard.press("Shift+Tab")
    seen = []
    for _ in range(30):
        tab.keyboard.press("Tab")
        focused = tab.evaluate(
            """() => { const e = document.activeElement, box = e.closest(".filter") ?? e;
            return [e.id || e.name || e.tagName, getComputedStyle(box).outlineStyle]; }"""
        )
        if focused[0] == "BODY":
            break
        seen.append(focused)
    assert {style for _, style in seen} == {"solid"}, seen
    assert {"run", "evaluation", "group", "search", "show", "list", "previous", "next", "marked", "item"} <= dict(
        seen
    ).keys()
    names = tab.locator("body").aria_snapshot()
    for part in (
        'combobox "Run"',
        'combobox "Evaluation"',
        'searchbox "Search"',
        'listbox "Items"',
        'group "Show which',
    ):
        assert part in names


@needs_chromium
def test_a_deep_link_restores_what_was_shown(run, tab, tmp_path):
    evaluate(tmp_path / "nca", TEN[:5], 40)
    page = page_of(tmp_path, run, tmp_path / "nca")
    visit(tab, page)
    tab.locator("#run").select_option("nca")
    tab.locator(".filter.harm").click()
    tab.locator("#search").fill("Which")
    expect(tab.locator("#status")).to_have_text("2 of 5 items: harm, “Which”")
    tab.keyboard.press("ArrowDown")
    tab.wait_for_url("**#run=nca&step=40&show=harm&q=Which&item=city-4")
    address = tab.url.partition("#")[2]
    tab.goto("about:blank")
    visit(tab, page, f"#{address}")
    assert chosen_id(tab) == "city-4"
    assert tab.locator("#run").input_value() == "nca"
    expect(tab.locator("#search")).to_have_value("Which")
    assert shown_ids(tab) == ["city-0", "city-4"]


@needs_chromium
def test_back_forward_and_an_address_edited_by_hand(run, tab, tmp_path):
    visit(tab, page_of(tmp_path, run))
    tab.keyboard.press("1")
    tab.keyboard.press("j")
    tab.keyboard.press("2")
    expect(tab.locator("#status")).to_have_text("2 of 10 items: help")
    tab.go_back()
    expect(tab.locator("#status")).to_have_text("3 of 10 items: harm")
    assert chosen_id(tab) == "city-4"  # the second of them, as it was left
    tab.go_forward()
    expect(tab.locator("#status")).to_have_text("2 of 10 items: help")
    tab.evaluate("location.hash = '#step=0&q=city-7'")
    expect(tab.locator("#status")).to_have_text("1 of 10 items: “city-7”")
    expect(tab.locator("#evaluation option:checked")).to_have_text("step 0")
    tab.evaluate("location.hash = '#show=harm&item=city-3'")
    expect(tab.locator("#place")).to_have_text("not in the list")  # right in both views
    expect(tab.locator("#item h2")).to_have_text("city-3")
    tab.evaluate("location.hash = '#item=city-99'")
    expect(tab.locator("#item")).to_have_text("This evaluation does not hold the item city-99.")
    tab.evaluate("location.hash = '#run=sft&show=flips&group=third'")
    expect(tab.locator("#complaint")).to_contain_text("No evaluation on this page has run=sft.")
    expect(tab.locator("#complaint")).to_contain_text("show=flips is unknown; it may be all, harm,")
    expect(tab.locator("#complaint")).to_contain_text("group=third")
    expect(tab.locator("#status")).to_have_text("10 of 10 items")
    tab.keyboard.press("j")


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(2)><img src=https://example.org/a.png>",
    "]]> &amp; &lt;b&gt; <b>bold</b> {{script}} {{catalogue}}",
    "line\u2028separator\u2029paragraph\r\nand \ttab \x00 nul \x1b escape \ufeff",
    "\u202eright to left override\u202c and \u05e9\u05dc\u05d5\u05dd, \u0645\u0631\u062d\u0628\u0627",
    "javascript:alert(3)",
    "👩‍👩‍👧 e\u0301 \U0001f600",
    "__proto__",
]


@needs_chromium
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_shown_as_it_is_and_does_nothing(hostile, tab, tmp_path):
    odd = record(
        hostile, "harm",
        group=hostile, answer=hostile, question=hostile, parsed_no_context=hostile, parsed_with_context=hostile,
        completion_no_context=hostile, completion_with_context=f"{hostile} and more",
        further_with_context=(GradedSample(hostile, hostile, "wrong", 3, True),),
    )  # fmt: skip
    evaluate(tmp_path / "<b>run<b>{{blocks}}", [odd, replace(odd, id="plain")], 40)
    visit(tab, page_of(tmp_path, tmp_path / "<b>run<b>{{blocks}}"))
    texts = tab.evaluate("""() => Object.fromEntries([
        ["id", "#item h2"], ["question", "#item dd .text"], ["left", ".view .completion"],
        ["right", ".view:nth-child(2) > .completion"], ["further", ".further .completion"], ["row", ".row-question"],
        ["group", "#group option:nth-child(2)"], ["run", "#run option"],
    ].map(([name, selector]) => [name, document.querySelector(selector).textContent]))""")
    assert texts == {
        "id": hostile, "question": hostile, "left": hostile, "right": f"{hostile} and more", "further": hostile,
        "row": hostile, "group": hostile, "run": "<b>run<b>{{blocks}}",
    }  # fmt: skip
    assert tab.locator("b, img, main script").count() == 0
    tab.evaluate("(id) => { location.hash = new URLSearchParams({item: id}) }", hostile)
    expect(tab.locator("#item h2")).to_have_count(1)
    assert tab.locator("#item h2").evaluate("e => e.textContent") == hostile


@needs_chromium
def test_half_a_surrogate_pair_reaches_the_page(tab, tmp_path):
    path = evaluate(tmp_path / "opd", [record("1", completion_no_context="HALF it")], 40)
    path.write_text(path.read_text().replace("HALF", "\\ud83d"))  # files of ours cannot hold it unescaped
    visit(tab, page_of(tmp_path, tmp_path / "opd"))
    assert tab.locator(".completion").first.evaluate("e => e.textContent.charCodeAt(0)") == 0xD83D


@needs_chromium
def test_the_policy_stops_what_a_fault_would_let_through(run, browser, tmp_path):
    path = page_of(tmp_path, run)
    planted = "<script>ran = 1</script><img src='https://example.org/x.png' onerror='ran = 1'>"
    path.write_text(path.read_text().replace("</body>", f"{planted}</body>"))
    tab = browser.new_page()  # not the fixture: here the browser is meant to complain
    failures = []
    tab.on("requestfailed", lambda request: failures.append((request.url, request.failure)))
    visit(tab, path)
    html_refused = """() => {
        try { document.body.innerHTML += "<p>"; return false; } catch { return true; }
    }"""
    assert tab.evaluate(html_refused)
    assert tab.evaluate("typeof ran") == "undefined"
    assert failures == [("https://example.org/x.png", "csp")]  # before it left the browser
    tab.close()


@needs_chromium
def test_ten_thousand_items_keep_the_document_small(tab, tmp_path):
    verdicts = list(REASONS)
    records = [record(str(number), verdicts[number % 4]) for number in range(10_000)]
    evaluate(tmp_path / "opd", records, 40)
    visit(tab, page_of(tmp_path, tmp_path / "opd"))
    expect(tab.locator("#status")).to_have_text("10,000 of 10,000 items")
    rows = tab.locator("#list [role=option]")
    assert rows.count() < 60
    tab.locator("#list").evaluate("list => { list.scrollTop = list.scrollHeight }")
    expect(tab.locator("#list .row-id", has_text="9999")).to_be_visible()
    assert rows.count() < 60
    active = tab.locator("#list").get_attribute("aria-activedescendant")
    assert tab.locator(f"#{active} .row-id").inner_text() == "0"  # out of sight, yet what the listbox points at exists
    tab.keyboard.press("End")
    assert chosen_id(tab) == "9999"
    tab.keyboard.press("PageUp")
    assert int(chosen_id(tab)) in range(9970, 9998)
    tab.keyboard.press("1")
    expect(tab.locator("#status")).to_have_text("2,500 of 10,000 items: harm")
    assert rows.count() < 60
    for _ in range(40):
        tab.keyboard.press("j")
    expect(tab.locator("#list [aria-selected=true]")).to_be_in_viewport()


CONTRAST = """() => {
    const channel = (v) => (v /= 255, v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const ground = (e) => {
        const colour = rgb(getComputedStyle(e).backgroundColor);
        return colour[3] === 0 ? (e.parentElement ? ground(e.parentElement) : [255, 255, 255]) : colour;
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
        const e = walker.currentNode.parentElement;
        if (walker.currentNode.data.trim() === "" || !e.checkVisibility() || e.closest("script")) continue;
        const pair = [luminance(rgb(getComputedStyle(e).color)), luminance(ground(e))].sort((a, b) => b - a);
        found.push([(pair[0] + 0.05) / (pair[1] + 0.05), `${e.tagName} ${e.className}: ${walker.currentNode.data}`]);
    }
    return found.sort((a, b) => a[0] - b[0]);
}"""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_in_both_schemes(scheme, run, tab, tmp_path):
    (run / "removability" / "step=000020.jsonl").write_text("broken\n")
    tab.emulate_media(color_scheme=scheme)
    with pytest.warns(UserWarning, match="step 20 is not shown"):
        page = page_of(tmp_path, run, all_steps=True)
    visit(tab, page, "#step=40&show=harm&group=nowhere")
    tab.locator("#show-help").click()
    dark_page = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark_page == (scheme == "dark")
    found = tab.evaluate(CONTRAST)
    assert len(found) > 60
    assert found[0][0] >= 4.5, found[:5]


@needs_chromium
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_nothing_is_wider_than_the_window_and_nothing_jumps(width, tab, tmp_path):
    long = [replace(record(f"city-{n}-" + "x" * 90, "harm"), completion_with_context="y" * 500) for n in range(40)]
    run = tmp_path / ("opd-" + "z" * 90)
    evaluate(run, [*long, *TEN], 40)
    tab.set_viewport_size({"width": width, "height": 844})
    visit(tab, page_of(tmp_path, run))
    places = []
    for key in ("End", "Home", "4", "0"):
        tab.keyboard.press(key)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        boxes = [tab.locator(f"#{id_}").bounding_box() for id_ in ("filters", "list", "item", "next")]
        places.append([(box["x"], box["y"], box["width"]) for box in boxes])
    assert places[1:] == places[:-1]


@needs_chromium
def test_an_item_shows_why_it_counts_wrong_and_what_it_cost(tab, tmp_path):
    further = (GradedSample("a", None, "no_answer", 3, True), GradedSample("Asia", "Asia", "correct", 2, True))
    flipped = record(
        "1", "harm", reason_with_context="several_answers", parsed_with_context=None, finished_with_context=False,
        length_no_context=1_000, length_with_context=1_250, kl=0.123456, num_kl_tokens=1_000,
        further_with_context=further,
    )  # fmt: skip
    unlike = replace(flipped, id="2", kl=None, num_kl_tokens=0, completion_with_context="")
    evaluate(tmp_path / "opd", [flipped, unlike], 40)
    visit(tab, page_of(tmp_path, tmp_path / "opd"))
    without, with_ = (tab.locator(".view").nth(n) for n in range(2))
    expect(without).to_contain_text("✓ right")
    expect(without).to_contain_text("Answer read: Asia. 1,000 tokens.")
    expect(with_).to_contain_text("✗ wrong: gives several answers")
    expect(with_).to_contain_text("Answer read: none. 1,250 tokens, cut at the token limit.")
    expect(with_).to_contain_text("Further answers drawn: 2, of which 1 right")
    expect(tab.locator(".numbers")).to_contain_text("0.1235 nats over 1,000 tokens")
    expect(tab.locator(".numbers")).to_contain_text("+250 tokens (+25.0 %)")
    tab.keyboard.press("j")
    expect(tab.locator(".numbers")).to_contain_text("not measured")
    expect(with_).to_contain_text("(the completion is empty)")


@needs_chromium
def test_an_item_is_followed_through_runs_and_steps_and_missing_ones_are_said(run, tab, tmp_path):
    other = [replace(TEN[0], question="Another question?"), *TEN[1:5]]
    evaluate(tmp_path / "nca", other, 40)
    page = page_of(tmp_path, run, tmp_path / "nca")
    visit(tab, page, "#run=opd&step=40&item=city-4")
    expect(tab.locator("#notes")).to_contain_text(
        "The fits' evaluations are NOT of the same items: of 11 items, 4 are in all of them."
    )
    expect(tab.locator("#notes")).to_contain_text("1 items have the id of another one")
    cells = [row.inner_text().split("\t") for row in tab.locator(".elsewhere tbody tr").all()]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["opd", "step 0", "✗✗ Neither"],
        ["opd", "step 40 (on show)", "✓✗ Harm"],
        ["nca", "step 40", "✓✗ Harm"],
    ]
    tab.locator(".elsewhere").get_by_role("link", name="step 0").click()
    expect(tab.locator("#evaluation option:checked")).to_have_text("step 0")
    assert chosen_id(tab) == "city-4"
    tab.evaluate("location.hash = '#run=opd&step=40&item=city-9'")
    expect(tab.locator(".elsewhere tbody tr").nth(2)).to_contain_text("does not hold this item")


@needs_chromium
def test_tests_and_controls_stand_in_the_selector_and_steps_between_are_left_out(run, tab, tmp_path):
    evaluate(run, TEN, 20)
    evaluate(run, TEN[:4], 40, "test")
    evaluate(run, TEN, 40, context="irrelevant")
    evaluate(run, TEN[:4], 40, "test", "wrong")
    visit(tab, page_of(tmp_path, run))
    expect(tab.locator("#notes")).not_to_contain_text("NOT of the same items")  # a test has items of its own
    names = ["step 0", "step 40", "step 40, control irrelevant", "step 40, test", "step 40, test, control wrong"]
    assert tab.locator("#evaluation option").all_inner_texts() == names
    expect(tab.locator("#evaluation option:checked")).to_have_text("step 40")
    expect(tab.locator("#notes")).to_contain_text("step 20 left out; --all-steps")
    tab.locator("#evaluation").select_option("step 40, test, control wrong")
    expect(tab.locator("#status")).to_have_text("4 of 4 items")
    assert "step=40&split=test&context=wrong" in tab.url
    visit(tab, page_of(tmp_path, run, all_steps=True))
    assert tab.locator("#evaluation option").all_inner_texts() == ["step 0", "step 20", *names[1:]]


@needs_chromium
def test_a_page_without_any_items_says_so(tab, tmp_path):
    evaluate(tmp_path / "opd", TEN, 40).unlink()
    tab.goto(page_of(tmp_path, tmp_path / "opd").as_uri())
    expect(tab.locator("#status")).to_have_text("No item to show: none of the runs has records that can be read.")
    expect(tab.locator("#notes")).to_contain_text("opd has no files of records in")


@needs_chromium
def test_a_broken_or_incomplete_file_of_records_is_left_out_and_named(run, tab, tmp_path):
    broken = evaluate(tmp_path / "nca", TEN, 0)
    broken.write_text(broken.read_text().replace('"id"', '"</script><script>alert(1)</script>"', 1))
    half = evaluate(tmp_path / "nca", TEN, 40)
    half.write_bytes(half.read_bytes()[:-20])
    (tmp_path / "nca/removability/test-step=000040.jsonl").touch()
    with (
        pytest.warns(UserWarning, match=r"nca, step 0 is not shown\. .*line 1 is broken"),
        pytest.warns(UserWarning, match="last line is half-written"),
    ):
        page = page_of(tmp_path, run, tmp_path / "nca")
    visit(tab, page, "#run=nca")
    notes = tab.locator("#notes")
    expect(notes).to_contain_text("nca, step 0 is not shown.")
    expect(notes).to_contain_text("found ['</script><script>alert(1)</script>',")
    expect(notes).to_contain_text("nca, step 40: 9 items, but summary.jsonl counts 10.")
    expect(notes).to_contain_text("nca, step 40, test is not shown:")
    expect(tab.locator("#status")).to_have_text("9 of 9 items")


def test_the_command_writes_the_page_and_the_same_runs_give_the_same_file(run, tmp_path, capsys):
    assert report_cli([str(run), "--output", str(tmp_path / "a"), "--all-steps"]) == 0
    assert f"{tmp_path / 'a' / 'removability.html'}" in capsys.readouterr().out
    second = report([run], tmp_path / "b", all_steps=True).page
    assert (tmp_path / "a/removability.html").read_bytes() == second.read_bytes()


def test_the_page_names_no_other_file_and_no_address(run, tmp_path):
    text = page_of(tmp_path, run).read_text()
    assert not re.findall(r"https?:|\bsrc=|<link|@import|url\(|fetch\(|XMLHttpRequest|WebSocket", text)
    assert "default-src 'none'" in text


def test_what_many_evaluations_share_is_there_once(tmp_path):
    draw = random.Random(0)
    records = [record(str(n), question=draw.randbytes(1000).hex()) for n in range(50)]  # hardly compressible
    for name in ("opd", "nca"):
        for step in (0, 40):
            evaluate(tmp_path / name, records, step)
    one = page_of(tmp_path, tmp_path / "opd").stat().st_size
    two = page_of(tmp_path, tmp_path / "opd", tmp_path / "nca").stat().st_size
    assert two - one < len(packed([r.question for r in records])) / 10


def test_names_of_files_are_read(tmp_path):
    names = ["step=000040.jsonl", "test-step=000040.wrong.jsonl", "step=000005.a.b.jsonl", "summary.jsonl", "old.jsonl"]
    (tmp_path / "removability").mkdir()
    for name in names:
        (tmp_path / "removability" / name).touch()
    found = [(file.split, file.context, file.step) for file in records_files(tmp_path)]
    assert found == [(None, None, 40), (None, "a.b", 5), ("test", "wrong", 40)]
