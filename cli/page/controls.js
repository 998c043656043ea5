// Run, evaluation, group, filter and search, as the user sets them.

const SEARCH_PAUSE_MS = 120; // after the last key: short enough to feel immediate, long enough not to search each letter

function fillRuns() {
  const labels = RUNS.map(({ label, method }) => (["unknown", label].includes(method) ? label : `${label} (${method})`));
  RUNS.forEach(({ label }, number) => {
    const empty = !EVALUATIONS.some((evaluation) => evaluation.run === number);
    controls.run.append(element("option", { value: label, disabled: empty }, labels[number]));
  });
}

const countBoxes = {}; // name of a filter -> where its count stands

function fillFilters() {
  SHOWN.forEach((name, digit) => {
    const verdict = Object.values(VERDICTS).find((known) => known.name === name);
    const radio = element("input", { type: "radio", name: "show", value: name, "aria-keyshortcuts": String(digit) });
    radio.addEventListener("change", () => changeChoice({ show: name }));
    const signs = verdict === undefined ? null : element("span", { "aria-hidden": "true" }, `${verdict.signs} `);
    countBoxes[name] = element("span", { class: "count", id: `count-${name}` }, "–");
    controls.filters.append(
      element(
        "label",
        { class: `filter ${name}`, title: verdict?.meaning ?? "every item" },
        radio,
        element("span", {}, signs, verdict?.title ?? "All"),
        countBoxes[name],
        element("kbd", { "aria-hidden": "true" }, String(digit)),
      ),
    );
  });
}

function groupsOf(rows) {
  return [...new Set(rows.map((row) => row.group))].filter((group) => group !== "").sort();
}

function fillGroups() {
  const groups = groupsOf(shown.rows);
  controls["group-choice"].hidden = groups.length === 0;
  const options = groups.map((group) => element("option", { value: group }, group));
  controls.group.replaceChildren(element("option", { value: "" }, "all"), ...options);
}

/** Sets every control to what is shown. */
function showChoice() {
  const { evaluation, choice } = shown;
  controls.run.value = evaluation.runLabel;
  const ofRun = EVALUATIONS.filter(({ run }) => run === evaluation.run);
  controls.evaluation.replaceChildren(
    ...ofRun.map((each) => element("option", { value: each.number }, evaluationName(each))),
  );
  controls.evaluation.value = evaluation.number;
  controls.group.value = choice.group ?? "";
  if (searchTimer === 0) controls.search.value = choice.q; // else the user is typing
  controls.filters.querySelector(`[value=${choice.show}]`).checked = true;
}

/** The user changed filter, group or search; the chosen item stays where it is still in the list. */
function changeChoice(change, how = "push") {
  if (shown.evaluation === null) return; // still being read; what is shown then sets the controls
  Object.assign(shown.choice, change);
  complain([]);
  showChoice();
  refilter(shown.row?.id ?? null);
  if (list.chosen < 0) choose(Math.min(0, shown.visible.length - 1));
  writeAddress(how);
}

/** The user chose another evaluation; filter, search and item stay. */
async function changeEvaluation(evaluation) {
  const { runLabel, step, split, context } = evaluation;
  const item = shown.row?.id ?? null;
  if (await follow({ run: runLabel, step, split, context, ...shown.choice, item })) writeAddress("push");
}

controls.run.addEventListener("change", () => {
  const ofRun = EVALUATIONS.filter(({ runLabel }) => runLabel === controls.run.value);
  const { step, split, context } = shown.evaluation;
  const same = ofRun.find((each) => each.step === step && each.split === split && each.context === context);
  changeEvaluation(same ?? preferred(ofRun));
});
controls.evaluation.addEventListener("change", () => changeEvaluation(EVALUATIONS[controls.evaluation.value]));
controls.group.addEventListener("change", () => changeChoice({ group: controls.group.value || null }));

let searchTimer = 0;
controls.search.addEventListener("input", () => {
  clearTimeout(searchTimer);
  searchTimer = setTimeout(searchNow, SEARCH_PAUSE_MS);
});

function searchNow() {
  clearTimeout(searchTimer);
  searchTimer = 0;
  if (controls.search.value !== shown.choice.q) changeChoice({ q: controls.search.value }, "replace");
}

controls.choices.addEventListener("submit", (event) => event.preventDefault());
controls.previous.addEventListener("click", () => step(-1));
controls.next.addEventListener("click", () => step(1));
controls.marked.addEventListener("change", drawItem);
controls["show-help"].addEventListener("click", showHelp);

function showHelp() {
  controls.help.showModal();
  controls["close-help"].focus();
}

// The user edited the address, followed a link, or went back or forward.
window.addEventListener("hashchange", () => {
  clearTimeout(addressTimer);
  addressWaiting = null;
  clearTimeout(searchTimer);
  searchTimer = 0;
  follow(readAddress());
});
