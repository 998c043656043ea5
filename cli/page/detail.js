// One item: question, both completions with their differing words marked, numbers, and its verdicts elsewhere.

/** Draws `row` into `box`; `marked`: differing words are marked. */
function drawItemOf(box, row, { evaluation, choice, marked }) {
  const sides = diffOf(row, marked);
  box.replaceChildren(
    itemHead(row),
    element(
      "dl",
      { class: "facts" },
      fact("Question", row.question === "" ? "(these records were written without it)" : textBlock(row.question)),
      fact("Reference answer", textBlock(row.answer)),
      row.group === "" ? null : fact("Group", textBlock(row.group)),
    ),
    element("p", { class: "diff-legend" }, ...legendOf(sides, marked)),
    element(
      "div",
      { class: "views" },
      view("Without the context", row.without, row.furtherWithout, sides.left),
      view("With the context", row.with, row.furtherWith, sides.right),
    ),
    numbers(row),
    elsewhere(row, evaluation, choice),
  );
}

function itemHead(row) {
  return element(
    "header",
    { class: "item-head" },
    element("h2", {}, element("bdi", {}, row.id)),
    element("p", {}, badge(row.verdict), ` ${VERDICTS[row.verdict].meaning}`),
  );
}

function fact(name, value) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, value));
}

/** A text as it is, with its line breaks, each paragraph in its own direction. */
function textBlock(text) {
  return element("div", { class: "text" }, text);
}

/** Both completions as nodes. The comparison is made for the item on show only. */
function diffOf(row, marked) {
  const texts = [row.without.completion, row.with.completion];
  const equal = texts[0] === texts[1];
  if (equal || !marked) return { left: [texts[0]], right: [texts[1]], equal, givenUp: false };
  const tokens = texts.map(tokensOf);
  const { marks, givenUp } = differing(...tokens);
  return {
    left: markedNodes(tokens[0], marks[0], "del"),
    right: markedNodes(tokens[1], marks[1], "ins"),
    equal,
    givenUp,
  };
}

/** Neighbouring tokens of one kind as one node. */
function markedNodes(tokens, marks, tag) {
  const nodes = [];
  for (let start = 0, end; start < tokens.length; start = end) {
    end = start + 1;
    while (end < tokens.length && marks[end] === marks[start]) end++;
    const text = tokens.slice(start, end).join("");
    nodes.push(marks[start] ? element(tag, { class: /^\s*\n\s*$/.test(text) ? "line-break" : null }, text) : text);
  }
  return nodes;
}

function legendOf({ equal, givenUp }, marked) {
  if (equal) return ["Both completions are the same, character by character."];
  if (!marked) return ["Differing words are not marked."];
  if (givenUp) return ["Too different for marks word by word: all between their common beginning and end is marked."];
  return [element("del", {}, "Dashed"), " only without the context, ", element("ins", {}, "solid"), " only with it."];
}

function view(title, sample, further, completion) {
  const right = sample.reason === "correct";
  return element(
    "section",
    { class: "view" },
    element("h3", {}, title),
    element(
      "p",
      { class: `grade ${right ? "both" : "harm"}` },
      element("span", { "aria-hidden": "true" }, right ? "✓ " : "✗ "),
      gradeOf(sample),
    ),
    sample.completion === ""
      ? element("p", { class: "empty" }, "(the completion is empty)")
      : element("div", { class: "text completion" }, ...completion),
    element(
      "p",
      { class: "view-facts" },
      "Answer read: ",
      sample.parsed === null ? "none" : element("bdi", {}, sample.parsed),
      `. ${lengthOf(sample)}.`,
    ),
    further.length === 0 ? null : furtherAnswers(further),
  );
}

function gradeOf(sample) {
  return REASONS[sample.reason] ?? `wrong: ${sample.reason}`;
}

function lengthOf(sample) {
  const tokens = `${sample.length.toLocaleString("en")} ${sample.length === 1 ? "token" : "tokens"}`;
  return sample.finished ? tokens : `${tokens}, cut at the token limit`;
}

function furtherAnswers(further) {
  const right = further.filter((sample) => sample.reason === "correct").length;
  return element(
    "details",
    { class: "further" },
    element("summary", {}, `Further answers drawn: ${further.length}, of which ${right} right`),
    element(
      "ol",
      {},
      ...further.map((sample) =>
        element(
          "li",
          {},
          element("p", {}, `${gradeOf(sample)}. ${lengthOf(sample)}.`),
          element("div", { class: "text completion" }, sample.completion),
        ),
      ),
    ),
  );
}

function numbers(row) {
  const longer = row.with.length - row.without.length;
  const percent = row.without.length === 0 ? "" : ` (${signed((100 * longer) / row.without.length, 1)} %)`;
  return element(
    "dl",
    { class: "facts numbers" },
    fact(
      "KL(without || with), mean per token of the completion without",
      row.kl === null ? "not measured" : `${row.kl.toFixed(4)} nats over ${row.klTokens.toLocaleString("en")} tokens`,
    ),
    fact("Length with the context, against without", `${signed(longer, 0)} tokens${percent}`),
  );
}

function signed(value, digits) {
  const sign = value > 0 ? "+" : value < 0 ? "−" : "±";
  return sign + Math.abs(value).toFixed(digits);
}

/** The item's verdict in every evaluation on the page. */
function elsewhere(row, shown, choice) {
  const lines = EVALUATIONS.map((evaluation) => {
    const verdict = evaluation.verdicts[row.item];
    const here = evaluation === shown;
    const name = evaluationName(evaluation);
    const link = element("a", { href: addressOf(evaluation, choice, row.id) }, name);
    return element(
      "tr",
      { "aria-current": here ? "true" : null },
      element("td", {}, element("bdi", {}, evaluation.runLabel)),
      element("th", { scope: "row" }, here ? `${name} (on show)` : verdict === NO_RECORD ? name : link),
      verdict === NO_RECORD
        ? element("td", { class: "empty" }, "does not hold this item")
        : element("td", {}, badge(verdict)),
    );
  });
  const head = ["Run", "Evaluation", "Verdict"];
  return element(
    "table",
    { class: "elsewhere" },
    element("caption", {}, "This item in every evaluation on the page"),
    element("thead", {}, element("tr", {}, ...head.map((title) => element("th", { scope: "col" }, title)))),
    element("tbody", {}, ...lines),
  );
}
