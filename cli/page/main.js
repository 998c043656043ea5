// The beginning: what to know before comparing, then what the address asks for.

function showNotes() {
  const { problems, remarks } = CATALOGUE;
  const count = problems.length + remarks.length;
  if (count === 0) return;
  controls.notes.hidden = false;
  controls.notes.open = problems.length > 0;
  controls.notes.querySelector("summary").textContent =
    problems.length > 0 ? `⚠ What to know before comparing (${count})` : `What is not on this page (${count})`;
  const lines = [...problems, ...remarks].map((text) => element("li", {}, text));
  controls.notes.querySelector("ul").append(...lines);
}

showNotes();
fillRuns();
fillFilters();
if (EVALUATIONS.length === 0) {
  controls.status.textContent = "No item to show: none of the runs has records that can be read.";
  for (const control of controls.choices.elements) control.disabled = true;
} else {
  follow(readAddress()).then(() => controls.list.focus({ preventScroll: true }));
}
