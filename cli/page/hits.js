// Where the text of a search stands in the item on show: painted over the text, which stays as it is.

function paintHits(box, text) {
  if (CSS.highlights === undefined) return; // a browser that cannot paint them still finds the item
  const ranges = text === "" ? [] : [...box.querySelectorAll("h2, .text")].flatMap((found) => hitsIn(found, text));
  CSS.highlights.set("hits", new Highlight(...ranges));
}

/** The ranges of `text`, which is in lower case, in an element; marks of differing words may cut through them. */
function hitsIn(box, text) {
  const nodes = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
  const starts = []; // [node, place of its first character in the whole text]
  let whole = "";
  while (nodes.nextNode()) {
    starts.push([nodes.currentNode, whole.length]);
    whole += nodes.currentNode.data;
  }
  const lower = whole.toLowerCase();
  if (lower.length !== whole.length) return []; // rare letters grow in lower case: places would not fit
  const at = (place) => {
    const [node, start] = starts.findLast(([, first]) => first <= place);
    return [node, place - start];
  };
  const ranges = [];
  for (let place = lower.indexOf(text); place >= 0; place = lower.indexOf(text, place + text.length)) {
    const range = new Range();
    range.setStart(...at(place));
    range.setEnd(...at(place + text.length));
    ranges.push(range);
  }
  return ranges;
}
