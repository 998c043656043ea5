// Which words differ between two texts: Myers, "An O(ND) Difference Algorithm and Its Variations" (1986), on tokens.

// Scripts without spaces between words are compared character by character.
const UNSPACED = String.raw`[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]`;
// Every code point belongs to exactly one token: a blank, an unspaced character, a word or number, or a sign.
const TOKEN = new RegExp(String.raw`\s|${UNSPACED}|(?:(?!${UNSPACED})[\p{L}\p{M}\p{N}_])+|[^\s\p{L}\p{M}\p{N}_]`, "gu");

// Edits. Beyond them two texts have little in common, and marks word by word would be confetti; also bounds the memory
// (one row of numbers per edit) and the time.
const MAX_EDITS = 2000;

function tokensOf(text) {
  return text.match(TOKEN) ?? [];
}

/**
 * Compares two lists of tokens.
 * Returns per list one byte per token, 1 where it stands in this list only, and whether the comparison was given up:
 * then everything between the common beginning and the common end is marked.
 */
function differing(left, right) {
  const marks = [new Uint8Array(left.length), new Uint8Array(right.length)];
  let start = 0;
  while (start < left.length && start < right.length && left[start] === right[start]) start++;
  let leftEnd = left.length;
  let rightEnd = right.length;
  while (leftEnd > start && rightEnd > start && left[leftEnd - 1] === right[rightEnd - 1]) {
    leftEnd--;
    rightEnd--;
  }
  const edits = shortestEdits(left.slice(start, leftEnd), right.slice(start, rightEnd));
  if (edits === null) {
    marks[0].fill(1, start, leftEnd);
    marks[1].fill(1, start, rightEnd);
    return { marks, givenUp: true };
  }
  for (const { side, index } of edits) marks[side][start + index] = 1;
  return { marks, givenUp: false };
}

/** The shortest list of tokens to mark, as {side, index}; null where it is longer than MAX_EDITS. */
function shortestEdits(left, right) {
  const limit = Math.min(MAX_EDITS, left.length + right.length);
  const offset = limit + 1;
  // Diagonal k holds the points with x - y = k; furthest[offset + k] is the largest x reached on it.
  const furthest = new Int32Array(2 * offset + 1);
  const before = []; // per number of edits: the diagonals -edits-1 to edits+1 as they were before that edit
  for (let edits = 0; edits <= limit; edits++) {
    before.push(furthest.slice(offset - edits - 1, offset + edits + 2));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && furthest[offset + k - 1] < furthest[offset + k + 1]);
      let x = down ? furthest[offset + k + 1] : furthest[offset + k - 1] + 1;
      while (x < left.length && x - k < right.length && left[x] === right[x - k]) x++;
      furthest[offset + k] = x;
      if (x >= left.length && x - k >= right.length) return editsBack(before, left.length, right.length);
    }
  }
  return null;
}

/** Walks back from the ends of both lists to their beginnings. */
function editsBack(before, x, y) {
  const found = [];
  for (let edits = before.length - 1; edits > 0; edits--) {
    const furthest = before[edits];
    const middle = edits + 1; // the place of diagonal 0
    const k = x - y;
    const down = k === -edits || (k !== edits && furthest[middle + k - 1] < furthest[middle + k + 1]);
    const previous = down ? k + 1 : k - 1;
    x = furthest[middle + previous];
    y = x - previous;
    found.push(down ? { side: 1, index: y } : { side: 0, index: x });
  }
  return found;
}
