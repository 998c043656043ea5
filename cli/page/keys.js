// The keyboard.

/** Moves through the list; from an item outside it, to its first row. */
function step(by) {
  if (shown.visible.length === 0) return;
  const to = list.chosen < 0 ? 0 : Math.max(0, Math.min(shown.visible.length - 1, list.chosen + by));
  if (to !== list.chosen) choose(to);
  writeAddress("replace");
}

const LIST_KEYS = {
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  PageDown: () => step(list.rowsInSight()),
  PageUp: () => step(-list.rowsInSight()),
  Home: () => step(-Infinity),
  End: () => step(Infinity),
  Enter: () => controls.item.focus(),
};
const LETTER_KEYS = {
  j: () => step(1),
  k: () => step(-1),
  "/": () => controls.search.select(),
  "?": showHelp,
  d: () => controls.marked.click(),
};
SHOWN.forEach((name, digit) => (LETTER_KEYS[digit] = () => changeChoice({ show: name })));
const SEARCH_KEYS = {
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  Enter: () => controls.list.focus(),
};

function keyAction(event) {
  const { key, target } = event;
  if (target === controls.search) {
    if (key === "Escape") return controls.search.value === "" ? () => controls.list.focus() : clearSearch;
    const action = SEARCH_KEYS[key];
    return action && (() => (searchNow(), action()));
  }
  if (key === "Escape") return () => controls.list.focus();
  if (target instanceof HTMLSelectElement) return undefined;
  // Where the page itself scrolls (narrow windows), arrows outside the list are left to that.
  const pageScrolls = document.documentElement.scrollHeight > window.innerHeight;
  if (target === controls.list || (target === document.body && !pageScrolls && key !== "Enter")) {
    if (Object.hasOwn(LIST_KEYS, key)) return LIST_KEYS[key];
  }
  return controls.letters.checked && Object.hasOwn(LETTER_KEYS, key) ? LETTER_KEYS[key] : undefined;
}

function clearSearch() {
  controls.search.value = "";
  searchNow();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || controls.help.open) return;
  if (shown.evaluation === null) return;
  const action = keyAction(event);
  if (action === undefined) return;
  event.preventDefault();
  action();
});
