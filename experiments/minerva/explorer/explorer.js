// The page of samples. What models wrote is only ever text of the document
// (textContent) or input of KaTeX, which is told to trust nothing.
"use strict";

const ROW = 76; // height of a row of the list, as in explorer.css
const PAGE = 10; // samples shown at a time
const CLASSES = 30; // answers shown at first
const MARKS = { right: "\u2713", wrong: "\u2717", open: "?", none: "\u2013" };
const TOLD = {
  right: "right", wrong: "wrong", open: "not known", none: "no answer",
};
const KINDS = Object.keys(MARKS);
const byId = (name) => document.getElementById(name);

let questions = [];
let shown = []; // numbers of questions that pass the filters, in order
let chosen = -1; // number of a question
const parts = new Map(); // number of a file -> its questions, or those who wait
const state = { filter: "", answer: -1, until: PAGE };

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

const SETTINGS = {
  throwOnError: false, trust: false, strict: "ignore", maxSize: 20,
  maxExpand: 500,
};
const DELIMITERS = [
  { left: "$$", right: "$$", display: true },
  { left: "\\[", right: "\\]", display: true },
  { left: "\\begin{align}", right: "\\end{align}", display: true },
  { left: "\\begin{align*}", right: "\\end{align*}", display: true },
  { left: "\\begin{equation}", right: "\\end{equation}", display: true },
  { left: "\\(", right: "\\)", display: false },
];
const DOLLAR = { left: "$", right: "$", display: false };

// Text with its formulas typeset. In tasks about money a dollar is a dollar.
function fill(place, text, task) {
  place.textContent = text;
  if (!byId("typeset").checked) return;
  const delimiters = task === "gsm8k" ? DELIMITERS : [...DELIMITERS, DOLLAR];
  renderMathInElement(place, {
    ...SETTINGS, delimiters, errorCallback: () => {},
  });
}

// An answer: a formula if it looks like one.
function fillAnswer(place, text, task) {
  place.textContent = text;
  place.title = text;
  if (!byId("typeset").checked || task === "gsm8k") return;
  const isWords = /(^|[^\\a-zA-Z])[a-zA-Z]{2,}/.test(text);
  if (isWords && !/[\\^_{}]/.test(text)) return;
  const formula = make("span");
  try {
    katex.render(text.replaceAll("$", ""), formula, {
      ...SETTINGS, throwOnError: true,
    });
    place.replaceChildren(formula);
  } catch (error) {
    if (!(error instanceof katex.ParseError) && !(error instanceof RangeError)) {
      throw error;
    }
  }
}

function strip(counts, name) {
  const total = counts.reduce((a, b) => a + b, 0) || 1;
  const made = make("div", name);
  KINDS.forEach((kind, i) => {
    if (!counts[i]) return;
    const part = make("i", `is-${kind}`);
    part.style.width = `${(100 * counts[i]) / total}%`;
    made.append(part);
  });
  made.title = KINDS.map((kind, i) => `${counts[i]} ${TOLD[kind]}`).join(", ");
  return made;
}

// --- the list: only the rows that are in sight exist ---

const typeset = new Map(); // number of a question -> its text, typeset
let plain = []; // rows in sight that are not
let waiting = 0;

// Formulas of the list, once it stands still.
function typesetList() {
  for (const [number, text] of plain) {
    fill(text, questions[number].text, questions[number].task);
    typeset.set(number, text);
  }
  plain = [];
  if (typeset.size > 500) typeset.clear();
}

function row(place) {
  const number = shown[place];
  const one = questions[number];
  const made = make("div", "row");
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", String(number === chosen));
  const text = typeset.get(number) ?? make("div", "text", one.text);
  if (!typeset.has(number)) plain.push([number, text]);
  const foot = make("div", "foot");
  foot.append(make("span", `is-${one.vote}`, MARKS[one.vote]));
  const told = [one.id, one.subject, one.level === null ? "" : `level ${one.level}`];
  foot.append(make("span", "name", told.filter(Boolean).join(" \u00b7 ")));
  foot.append(strip(one.counts, "strip"));
  made.append(text, foot);
  made.addEventListener("click", () => choose(number));
  return made;
}

let drawn = "";
function drawList(always) {
  const list = byId("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 3);
  const count = Math.ceil(list.clientHeight / ROW) + 6;
  const last = Math.min(shown.length, first + count);
  if (!always && drawn === `${first} ${last}`) return;
  drawn = `${first} ${last}`;
  byId("space").style.height = `${shown.length * ROW}px`;
  const rows = byId("rows");
  rows.style.top = `${first * ROW}px`;
  const made = [];
  plain = [];
  for (let place = first; place < last; place++) made.push(row(place));
  rows.replaceChildren(...made);
  clearTimeout(waiting);
  waiting = setTimeout(typesetList, 60);
}

// --- filters ---

const VOTES = {
  right: (q) => q.vote === "right",
  wrong: (q) => q.vote !== "right",
  missed: (q) => q.vote !== "right" && q.counts[0] > 0,
  never: (q) => q.counts[0] === 0,
  none: (q) => q.vote === "none",
};
const ORDERS = {
  share: (q) => q.counts[0] / q.samples,
  agreement: (q) => q.top / q.samples,
};
const KEYS = ["run", "task", "subject", "level"];

function percent(part, whole) {
  return whole ? `${((100 * part) / whole).toFixed(1)} %` : "\u2013";
}

function filter() {
  const wanted = KEYS.map((key) => [key, byId(key).value]).filter((w) => w[1]);
  const vote = VOTES[byId("vote").value];
  const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = [];
  questions.forEach((q, number) => {
    if (!wanted.every(([key, value]) => String(q[key] ?? "") === value)) return;
    if (vote && !vote(q)) return;
    if (!words.every((word) => q.searched.includes(word))) return;
    shown.push(number);
  });
  const order = ORDERS[byId("order").value];
  if (order) shown.sort((a, b) => order(questions[a]) - order(questions[b]));
  summarise();
  byId("list").scrollTop = 0;
  drawList(true);
}

function summarise() {
  let right = 0, samples = 0, votes = 0, any = 0;
  for (const number of shown) {
    const q = questions[number];
    right += q.counts[0];
    samples += q.samples;
    votes += q.vote === "right";
    any += q.counts[0] > 0;
  }
  const all = shown.length;
  byId("summary").textContent =
    `${all} of ${questions.length} questions, ${samples} samples: ` +
    `${percent(right, samples)} right, majority right ${percent(votes, all)}, ` +
    `any right ${percent(any, all)}`;
}

function fillChoices(key) {
  const found = new Set(questions.map((q) => q[key] ?? ""));
  const names = [...found].filter((name) => name !== "");
  names.sort((a, b) => (typeof a === "number" ? a - b : a < b ? -1 : 1));
  byId(key).closest("label").hidden = found.size < 2;
  byId(key).replaceChildren(
    ...["", ...names].map((name) => {
      const made = make("option", "", name === "" ? "all" : String(name));
      made.value = String(name);
      return made;
    }),
  );
}

// --- a question ---

function load(number, then) {
  const known = parts.get(number);
  if (known && known.rows) return then(known.rows);
  if (known) return void known.waiting.push(then);
  parts.set(number, { waiting: [then] });
  const script = make("script");
  script.src = `data/part-${String(number).padStart(5, "0")}.js`;
  script.onerror = () => {
    parts.delete(number);
    byId("detail").replaceChildren(
      make("p", "hint", `${script.src} cannot be read.`));
  };
  document.head.append(script);
}

function explorerPart(number, text) {
  const known = parts.get(number) || { waiting: [] };
  const rows = JSON.parse(text);
  parts.set(number, { rows });
  for (const then of known.waiting || []) then(rows);
  if (parts.size > 40) parts.delete(parts.keys().next().value);
}

function choose(number) {
  if (chosen !== number) Object.assign(state, { filter: "", answer: -1, until: PAGE });
  chosen = number;
  const one = questions[number];
  history.replaceState(null, "", `#${number}`);
  drawList(true);
  load(one.part, (rows) => {
    if (chosen === number) draw(one, rows[one.place]);
  });
}

function draw(one, found) {
  const detail = byId("detail");
  const told = [one.run, one.id, one.task, one.subject,
    one.level === null ? "" : `level ${one.level}`];
  const question = make("div", "question");
  fill(question, found.question, one.task);
  const gold = make("p", "gold", "Right answer: ");
  const answer = make("span");
  fillAnswer(answer, found.gold, one.task);
  gold.append(answer);
  detail.replaceChildren(
    make("p", "meta", told.filter(Boolean).join(" \u00b7 ")), question, gold,
    make("h2", "", `Votes of ${one.samples} samples`), votes(one, found, CLASSES),
    make("h2", "", "Samples"), tools(one, found), list(one, found));
  detail.scrollTop = 0;
}

function votes(one, found, most) {
  const made = make("div", "votes");
  const largest = Math.max(1, one.counts[3], ...found.classes.map((c) => c.count));
  const rows = found.classes.map((c, i) => [c.kind, c.answer, c.count, i]);
  rows.sort((a, b) => b[2] - a[2]);
  if (one.counts[3]) rows.push(["none", null, one.counts[3], -2]);
  for (const [kind, text, count, number] of rows.slice(0, most)) {
    const answer = make("div", "answer", TOLD.none);
    if (text !== null) fillAnswer(answer, text, one.task);
    const bar = make("div", "bar");
    const part = make("i", `is-${kind}`);
    part.style.width = `${(100 * count) / largest}%`;
    bar.append(part);
    const mark = make("span", `is-${kind}`, MARKS[kind]);
    mark.title = TOLD[kind];
    const told = make("button", "count", String(count));
    told.title = "show the samples with this answer";
    told.addEventListener("click", () => {
      Object.assign(state, { answer: number, filter: "", until: PAGE });
      draw(one, found);
    });
    made.append(mark, answer, bar, told);
  }
  if (rows.length > most) {
    const more = make("button", "more", `${rows.length - most} more answers`);
    more.addEventListener("click", () =>
      made.replaceWith(votes(one, found, rows.length)));
    made.append(make("span"), more);
  }
  return made;
}

function tools(one, found) {
  const made = make("div", "tools");
  const choices = [["", one.samples], ...KINDS.map((kind, i) => [kind, one.counts[i]])];
  for (const [kind, count] of choices) {
    if (!count) continue;
    const button = make("button", "", `${kind ? TOLD[kind] : "all"} ${count}`);
    const pressed = state.answer === -1 && state.filter === kind;
    button.setAttribute("aria-pressed", String(pressed));
    button.addEventListener("click", () => {
      Object.assign(state, { filter: kind, answer: -1, until: PAGE });
      draw(one, found);
    });
    made.append(button);
  }
  return made;
}

function passes(sample) {
  if (state.answer === -2) return sample.label < 0;
  if (state.answer >= 0) return sample.label === state.answer;
  return !state.filter || sample.kind === state.filter;
}

function list(one, found) {
  const made = make("div", "samples");
  const wanted = [];
  found.samples.forEach((sample, i) => {
    if (passes(sample)) wanted.push([i, sample]);
  });
  for (const [i, sample] of wanted.slice(0, state.until)) {
    const card = make("section", `sample is-${sample.kind}`);
    const head = make("div", "head");
    head.append(make("span", `is-${sample.kind}`,
      `${MARKS[sample.kind]} ${TOLD[sample.kind]}`));
    head.append(make("span", "", `sample ${i}`));
    if (sample.log_prob !== null) {
      head.append(make("span", "", `log-probability ${sample.log_prob.toFixed(2)}`));
    }
    if (sample.num_tokens !== null) {
      head.append(make("span", "", `${sample.num_tokens} tokens`));
    }
    const body = make("div", "body");
    fill(body, sample.text, one.task);
    card.append(head, body);
    made.append(card);
  }
  if (wanted.length > state.until) {
    const more = make("button", "more", `${wanted.length - state.until} more`);
    more.addEventListener("click", () => {
      state.until += PAGE;
      made.replaceWith(list(one, found));
    });
    made.append(more);
  }
  return made;
}

// --- beginning ---

function explorerIndex(text) {
  const { title, rows } = JSON.parse(text);
  document.title = title;
  questions = rows.map((q) => ({
    ...q,
    samples: q.counts.reduce((a, b) => a + b, 0),
    searched: `${q.id}\n${q.text}`.toLowerCase(),
  }));
  KEYS.forEach(fillChoices);
  filter();
  const wanted = Number.parseInt(location.hash.slice(1), 10);
  if (questions[wanted]) choose(wanted);
}

function step(by) {
  const place = shown.indexOf(chosen);
  const next = Math.min(shown.length - 1, Math.max(0, place + by));
  if (!shown.length) return;
  const list = byId("list");
  const top = next * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  const lowest = top + ROW - list.clientHeight;
  if (lowest > list.scrollTop) list.scrollTop = lowest;
  choose(shown[next]);
}

byId("list").addEventListener("scroll", () => requestAnimationFrame(() => drawList()));
byId("list").addEventListener("keydown", (event) => {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  step(by);
});
window.addEventListener("resize", () => drawList(true));
for (const key of [...KEYS, "vote", "order"]) {
  byId(key).addEventListener("change", filter);
}
byId("find").addEventListener("input", filter);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("typeset").addEventListener("change", () => {
  typeset.clear();
  drawList(true);
  if (chosen >= 0) choose(chosen);
});
