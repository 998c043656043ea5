// A list of any length: only the rows in sight, and the chosen one, are in the document.

const ROW_HEIGHT_REM = 3.5;
const ROWS_BEYOND = 8; // above and below the visible part, so that fast scrolling shows no gaps
const EXCERPT = 200; // characters of a question that a row can show at most

class ItemList {
  /** `onChoose(index)` is called when the user picks a row. */
  constructor(box, onChoose) {
    this.box = box;
    this.rows = [];
    this.chosen = -1;
    this.drawn = new Map(); // index -> element
    this.canvas = element("div", { role: "presentation", class: "canvas" });
    box.append(this.canvas);
    this.scheduled = false;
    box.addEventListener("scroll", () => this.schedule(), { passive: true });
    new ResizeObserver(() => this.schedule()).observe(box);
    box.addEventListener("click", (event) => {
      const row = event.target.closest("[role=option]");
      if (row !== null) onChoose(Number(row.dataset.index));
    });
  }

  /** Shows other rows; `whenEmpty` stands in the place of none. */
  show(rows, whenEmpty) {
    this.rows = rows;
    this.chosen = -1;
    this.drawn.clear();
    this.canvas.replaceChildren();
    if (rows.length === 0) this.canvas.append(element("p", { class: "empty" }, whenEmpty));
    this.box.scrollTop = 0;
    this.draw();
  }

  /** Marks a row as chosen and brings it into sight; -1: none. */
  choose(index) {
    this.drawn.get(this.chosen)?.setAttribute("aria-selected", "false");
    this.chosen = index;
    if (index >= 0) {
      const top = index * this.rowHeight();
      const lowest = top + this.rowHeight() - this.box.clientHeight;
      this.box.scrollTop = Math.min(top, Math.max(lowest, this.box.scrollTop));
    }
    this.draw();
    if (index >= 0) {
      this.drawn.get(index).setAttribute("aria-selected", "true");
      this.box.setAttribute("aria-activedescendant", `row-${index}`);
    } else {
      this.box.removeAttribute("aria-activedescendant");
    }
  }

  /** Rows that fit into the box. */
  rowsInSight() {
    return Math.max(1, Math.floor(this.box.clientHeight / this.rowHeight()));
  }

  rowHeight() {
    return ROW_HEIGHT_REM * parseFloat(getComputedStyle(document.documentElement).fontSize);
  }

  schedule() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.draw();
    });
  }

  draw() {
    const height = this.rowHeight();
    this.canvas.style.height = this.rows.length === 0 ? "" : `${this.rows.length * height}px`;
    const first = Math.max(0, Math.floor(this.box.scrollTop / height) - ROWS_BEYOND);
    const end = Math.min(
      this.rows.length,
      Math.ceil((this.box.scrollTop + this.box.clientHeight) / height) + ROWS_BEYOND,
    );
    for (const [index, drawn] of this.drawn) {
      if ((index < first || index >= end) && index !== this.chosen) {
        drawn.remove();
        this.drawn.delete(index);
      }
    }
    for (let index = first; index < end; index++) this.drawRow(index, height);
    if (this.chosen >= 0) this.drawRow(this.chosen, height);
  }

  drawRow(index, height) {
    let drawn = this.drawn.get(index);
    if (drawn === undefined) {
      drawn = rowElement(this.rows[index], index, this.rows.length);
      drawn.setAttribute("aria-selected", String(index === this.chosen));
      this.drawn.set(index, drawn);
      this.canvas.append(drawn);
    }
    drawn.style.top = `${index * height}px`; // anew each time: the user may have changed the font's size
    drawn.style.height = `${height}px`;
  }
}

function rowElement(row, index, count) {
  const read = (sample) => element("bdi", {}, sample.parsed === null ? "no answer" : excerpt(sample.parsed));
  return element(
    "div",
    {
      role: "option",
      id: `row-${index}`,
      class: "row",
      "data-index": index,
      "aria-setsize": count,
      "aria-posinset": index + 1,
    },
    element(
      "div",
      { class: "row-line" },
      badge(row.verdict),
      element("bdi", { class: "row-question" }, excerpt(row.question || row.without.completion)),
    ),
    element(
      "div",
      { class: "row-line row-facts" },
      element("bdi", { class: "row-id" }, row.id),
      element("span", { class: "row-answers" }, read(row.without), " → ", read(row.with)),
    ),
  );
}

function badge(verdict) {
  const { name, title, signs } = VERDICTS[verdict];
  return element("span", { class: `badge ${name}` }, element("span", { "aria-hidden": "true" }, `${signs} `), title);
}

function excerpt(text) {
  return text.slice(0, EXCERPT);
}
