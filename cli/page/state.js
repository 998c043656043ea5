// What is shown, and how it follows the address and the address it.

/** The elements of page.html that have an id. */
const controls = Object.fromEntries([...document.querySelectorAll("body [id]")].map((found) => [found.id, found]));

const ADDRESS_PAUSE_MS = 300; // browsers refuse addresses that change with every repetition of a key held down

const shown = {
  evaluation: null,
  choice: { show: "all", group: null, q: "" },
  rows: [], // all of the evaluation
  visible: [], // those that filter, group and search leave
  row: null, // the chosen one; it may be outside `visible`
  missing: null, // the id that was asked for in vain
};
const list = new ItemList(controls.list, (index) => {
  choose(index);
  writeAddress("push");
});

// ---- from what is asked to what is shown

let latestRequest = 0;

/** Shows what `asked` (of readAddress) describes. Returns whether nothing newer was asked for in the meantime. */
async function follow(asked) {
  const request = ++latestRequest;
  const { evaluation, choice, complaints } = resolve(asked);
  if (evaluation !== shown.evaluation) {
    controls.status.textContent = "Reading the items …";
    let rows;
    try {
      rows = await rowsOf(evaluation);
    } catch (error) {
      controls.status.textContent = "";
      complain([`The items cannot be read from this page: ${error.message}. It needs a browser of 2023 or later.`]);
      return false;
    }
    if (request !== latestRequest) return false;
    Object.assign(shown, { evaluation, rows });
    fillGroups();
  }
  if (choice.group !== null && !groupsOf(shown.rows).includes(choice.group)) {
    complaints.push(`No item of this evaluation is in group=${choice.group}; every group is shown.`);
    choice.group = null;
  }
  shown.choice = choice;
  showChoice();
  refilter(asked.item);
  complain(complaints);
  return true;
}

/** Applies filter, group and search, and chooses the item `id`; null: the first one. */
function refilter(id) {
  const { show, group, q } = shown.choice;
  const text = q.toLowerCase();
  const counts = Object.fromEntries(SHOWN.map((name) => [name, 0]));
  shown.visible = shown.rows.filter((row) => {
    if ((group !== null && row.group !== group) || (text !== "" && !rowHolds(row, text))) return false;
    const { name } = VERDICTS[row.verdict];
    counts.all++;
    counts[name]++;
    return show === "all" || show === name;
  });
  for (const name of SHOWN) countBoxes[name].textContent = counts[name].toLocaleString("en");
  list.show(shown.visible, "No item is left. Choose another filter or group, or clear the search.");
  sayStatus();
  const index = id === null ? Math.min(0, shown.visible.length - 1) : shown.visible.findIndex((row) => row.id === id);
  if (id === null || index >= 0) return choose(index);
  const hidden = shown.rows.find((row) => row.id === id) ?? null;
  list.choose(-1);
  Object.assign(shown, { row: hidden, missing: hidden === null ? id : null });
  drawItem();
}

/** Chooses a row of the list; -1: none. */
function choose(index) {
  list.choose(index);
  Object.assign(shown, { row: shown.visible[index] ?? null, missing: null });
  drawItem();
}

function drawItem() {
  const { row, missing, evaluation, choice } = shown;
  const focused = controls.item.contains(document.activeElement);
  if (row === null) {
    const says = missing === null ? "No item is chosen." : `This evaluation does not hold the item ${missing}.`;
    controls.item.replaceChildren(element("p", { class: "empty" }, says));
  } else {
    drawItemOf(controls.item, row, { evaluation, choice, marked: controls.marked.checked });
  }
  paintHits(controls.item, choice.q.toLowerCase());
  controls.item.scrollTop = 0;
  if (focused) controls.item.focus(); // a link inside it is gone
  const count = shown.visible.length.toLocaleString("en");
  const position = list.chosen < 0 ? "none" : (list.chosen + 1).toLocaleString("en");
  controls.place.textContent = row !== null && list.chosen < 0 ? "not in the list" : `${position} of ${count}`;
  controls.previous.setAttribute("aria-disabled", String(list.chosen <= 0));
  controls.next.setAttribute("aria-disabled", String(list.chosen >= shown.visible.length - 1));
  const where = `${evaluation.runLabel}, ${evaluationName(evaluation)}`;
  document.title = row === null ? `${where} – removability` : `${row.id} – ${where} – removability`;
}

function sayStatus() {
  const { show, group, q } = shown.choice;
  const total = shown.rows.length;
  const limits = [show === "all" ? null : show, group === null ? null : `group ${group}`, q === "" ? null : `“${q}”`];
  const kept = limits.filter((limit) => limit !== null);
  const count = shown.visible.length.toLocaleString("en");
  controls.status.textContent =
    `${count} of ${total.toLocaleString("en")} ${total === 1 ? "item" : "items"}` +
    (kept.length > 0 ? `: ${kept.join(", ")}` : "");
}

function complain(complaints) {
  controls.complaint.textContent = complaints.join(" ");
  controls.complaint.hidden = complaints.length === 0;
}

// ---- the address

let addressTimer = 0;
let addressWaiting = null;

/** "push": a new entry of the history; "replace": the present one, after a pause. */
function writeAddress(how) {
  const address = addressOf(shown.evaluation, shown.choice, shown.row?.id ?? shown.missing);
  if (how === "push") {
    settleAddress(); // the entry that is left keeps the item that was last shown under it
    if (address !== location.hash) history.pushState(null, "", address);
  } else {
    clearTimeout(addressTimer);
    addressWaiting = address;
    addressTimer = setTimeout(settleAddress, ADDRESS_PAUSE_MS);
  }
}

function settleAddress() {
  clearTimeout(addressTimer);
  if (addressWaiting !== null) history.replaceState(null, "", addressWaiting);
  addressWaiting = null;
}
