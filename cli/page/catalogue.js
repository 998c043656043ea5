// What the page holds: runs, evaluations, items. The large parts are unpacked when they are looked at.

const CATALOGUE = JSON.parse(document.getElementById("catalogue").textContent);
const { runs: RUNS, evaluations: EVALUATIONS } = CATALOGUE;
EVALUATIONS.forEach((evaluation, number) => Object.assign(evaluation, { number, runLabel: RUNS[evaluation.run].label }));

const VERDICTS = {
  h: { name: "harm", title: "Harm", signs: "✓✗", meaning: "right without the context, wrong with it" },
  p: { name: "help", title: "Help", signs: "✗✓", meaning: "wrong without the context, right with it" },
  b: { name: "both", title: "Both right", signs: "✓✓", meaning: "right in both views" },
  n: { name: "neither", title: "Neither", signs: "✗✗", meaning: "wrong in both views" },
};
const NO_RECORD = ".";

const REASONS = {
  correct: "right",
  wrong: "wrong",
  no_answer: "wrong: no answer could be read",
  several_answers: "wrong: gives several answers",
  not_a_choice: "wrong: answer is none of the choices",
  lost: "wrong: lost the game",
  unfinished: "wrong: game not finished at its turn limit",
};

/** Reads a part of the page that Python packed: base64 of gzip of JSON. */
async function unpack(id) {
  const binary = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

let unpackedItems = null;

/** All items of the page; an evaluation need not have each of them. */
function items() {
  unpackedItems ??= unpack("items").then((rows) =>
    rows.map(([id, group, question, answer]) => ({ id, group, question, answer })),
  );
  return unpackedItems;
}

// One evaluation at a time stays in memory: many of them, with long completions, would not fit.
let unpackedEvaluation = { number: -1, rows: null };

/** The rows of an evaluation: an item with both answers. */
function rowsOf(evaluation) {
  if (unpackedEvaluation.number !== evaluation.number) {
    const rows = Promise.all([items(), unpack(`evaluation-${evaluation.number}`)]).then(([all, records]) =>
      records.map((record) => ({
        ...all[record.item],
        item: record.item,
        verdict: evaluation.verdicts[record.item],
        without: record.without[0],
        with: record.with[0],
        furtherWithout: record.without.slice(1),
        furtherWith: record.with.slice(1),
        kl: record.kl,
        klTokens: record.kl_tokens,
        searched: null,
      })),
    );
    unpackedEvaluation = { number: evaluation.number, rows };
  }
  return unpackedEvaluation.rows;
}

/** Whether a row holds `text`, which is in lower case. The lower-case copy of a row is made by its first search. */
function rowHolds(row, text) {
  row.searched ??= [row.id, row.question, row.answer, row.without.completion, row.with.completion]
    .join("\n")
    .toLowerCase();
  return row.searched.includes(text);
}

/** An evaluation in words, apart from its run. */
function evaluationName({ step, split, context }) {
  const control = context === null ? null : `control ${context}`;
  return [`step ${step}`, split, control].filter((part) => part !== null).join(", ");
}

/** An element; strings among the children become text, never HTML. */
function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
