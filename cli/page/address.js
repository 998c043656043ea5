// The address after "#" is what is shown: #run=opd&step=40&split=test&context=wrong&show=harm&group=seen&q=river&item=17

const SHOWN = ["all", ...Object.values(VERDICTS).map((verdict) => verdict.name)];

/** What the address asks for; null where it says nothing. */
function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(
    ["run", "step", "split", "context", "show", "group", "q", "item"].map((name) => [name, asked.get(name)]),
  );
}

/** The address of an evaluation, a choice of its items, and one of them. */
function addressOf(evaluation, { show, group, q }, item) {
  const said = new URLSearchParams();
  said.set("run", evaluation.runLabel);
  said.set("step", evaluation.step);
  if (evaluation.split !== null) said.set("split", evaluation.split);
  if (evaluation.context !== null) said.set("context", evaluation.context);
  if (show !== "all") said.set("show", show);
  if (group !== null) said.set("group", group);
  if (q !== "") said.set("q", q);
  if (item !== null) said.set("item", item);
  return `#${said}`;
}

/** The evaluation to begin with: the first run's last one of the fit, with the context itself where there is one. */
function preferred(evaluations) {
  const order = (e) => [e.run, e.context !== null, e.split !== null, -e.step];
  const precedes = (a, b) => {
    const i = order(a).findIndex((value, place) => value !== order(b)[place]);
    return i >= 0 && order(a)[i] < order(b)[i];
  };
  return evaluations.reduce((best, next) => (precedes(next, best) ? next : best));
}

/** Finds what the address asks for, and says what it asks in vain. */
function resolve(asked) {
  const complaints = [];
  const matches = (evaluation) =>
    (asked.run === null || evaluation.runLabel === asked.run) &&
    (asked.step === null || evaluation.step === Number(asked.step)) &&
    (asked.split === null || evaluation.split === asked.split) &&
    (asked.context === null || evaluation.context === asked.context);
  let found = EVALUATIONS.filter(matches);
  if (found.length === 0) {
    const ofRun = EVALUATIONS.filter((evaluation) => evaluation.runLabel === asked.run);
    found = ofRun.length > 0 ? ofRun : EVALUATIONS;
    const wanted = ["run", "step", "split", "context"].filter((name) => asked[name] !== null);
    complaints.push(`No evaluation on this page has ${wanted.map((name) => `${name}=${asked[name]}`).join(", ")}.`);
  }
  let show = asked.show ?? "all";
  if (!SHOWN.includes(show)) {
    complaints.push(`show=${show} is unknown; it may be ${SHOWN.join(", ")}.`);
    show = "all";
  }
  return { evaluation: preferred(found), choice: { show, group: asked.group, q: asked.q ?? "" }, complaints };
}
