"use strict";

// Shows one pair after the other. An answer is kept here, and sent again under the same key, until the server has it.

const SLIP = 300; // milliseconds after a pair appears in which a key or tap is meant for the one before
const PATIENCE = 40_000; // milliseconds that the server is given
const WAITS = [2, 5, 10, 20, 30]; // seconds between one try and the next
const WORDS = {
  left: "answer 1 is better",
  right: "answer 2 is better",
  tie: "a tie",
  both_bad: "both are bad",
  skip: "skipped",
};
const HEADINGS = {
  open: "Thank you, nothing left",
  coming: "Thank you, more is coming",
  paused: "Thank you, the run has stopped for now",
  over: "Thank you, that was all",
};
const KEYS = new Map([["1", "left"], ["2", "right"], ["t", "tie"], ["b", "both_bad"], ["s", "skip"]]);
const CODES = new Map([["Digit1", "left"], ["Digit2", "right"]]); // where digits need the shift key
const LOOK = 2000; // milliseconds between looks at whether more has come
const PENDING = "klimb-pending";

const byId = (id) => document.getElementById(id);
const buttons = [...document.querySelectorAll("[data-say]")];
const state = {
  rater: null,
  store: "", // stands for the store that the pairs are from
  question: null,
  pending: null, // an answer that the server does not have yet
  last: null, // the answer before, whose note comes back with it
  isBusy: false,
  hasKeys: true,
  readyAt: 0,
  numTries: 0,
  retry: null,
  timer: 0,
  guidelines: "",
  look: 0, // the timer of the next look
};
const clock = { spent: 0, since: 0 }; // counts while the page can be seen

async function call(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const options = body === undefined ? {} : post;
  const answer = await fetch(path, { ...options, signal: AbortSignal.timeout(PATIENCE) });
  const said = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  return { status: answer.status, said };
}

// Ask for something; null when it failed in a way that may pass, and then `retry` is tried again by itself.
async function attempt(path, body, lament, retry) {
  if (state.isBusy) return null;
  stopTrying();
  setBusy(true);
  try {
    const reply = await call(path, body);
    if (reply.status < 500) {
      state.numTries = 0;
      hideProblem();
      return reply;
    }
    tryLater(`${lament} ${reply.said.error}`, retry);
  } catch {
    tryLater(`${lament} The server does not answer.`, retry);
  } finally {
    setBusy(false);
  }
  return null;
}

function tryLater(text, retry) {
  const wait = WAITS[Math.min(state.numTries, WAITS.length - 1)];
  state.numTries += 1;
  state.retry = retry;
  state.timer = setTimeout(retry, wait * 1000);
  showProblem(`${text} Trying again in ${wait} s.`, true);
}

function stopTrying() {
  clearTimeout(state.timer);
  state.retry = null;
}

async function load() {
  clearTimeout(state.look);
  const reply = await attempt("/api/next", undefined, "The next pair cannot be fetched.", load);
  if (reply === null) return;
  if (reply.status !== 200) {
    showProblem(reply.said.error, false);
    return;
  }
  show(reply.said);
  resume();
}

async function send() {
  if (state.pending === null) return;
  tell("Saving…");
  const lament = "Not saved yet, but kept here.";
  const reply = await attempt("/api/judgements", state.pending, lament, send);
  if (reply === null) {
    tell(state.pending === null ? "" : "Not saved yet");
    return;
  }
  const sent = state.pending;
  state.pending = null;
  forget();
  mark(null);
  if (reply.status === 200) {
    state.last = sent;
    tell(`Saved: ${WORDS[sent.preferred]}`);
    show(reply.said);
  } else {
    tell("Not saved");
    showProblem(reply.said.error, false);
    if (reply.status === 409) show(reply.said);
  }
}

async function undo() {
  if (state.pending !== null || state.rater === null) return;
  // Sent again, it would take back another one: after a failure the page only looks where it stands.
  const reply = await attempt("/api/undo", {}, "It is not known whether that was taken back.", load);
  if (reply === null) return;
  if (reply.status !== 200) {
    showProblem(reply.said.error, false);
    return;
  }
  tell(reply.said.undone ? "Taken back; say it anew" : reply.said.reason || "There is nothing to take back");
  show(reply.said);
}

async function takeName(event) {
  event.preventDefault();
  const name = { name: byId("name").value };
  const retry = () => byId("name-form").requestSubmit();
  const reply = await attempt("/api/rater", name, "Your name was not taken.", retry);
  if (reply === null) return;
  if (reply.status === 200) await load();
  else showProblem(reply.said.error, false);
}

function remember() {
  store(sessionStorage, PENDING, JSON.stringify({ ...state.pending, rater: state.rater }));
}

function forget() {
  store(sessionStorage, PENDING, null);
}

function resume() {
  const { rater, ...pending } = JSON.parse(recall(sessionStorage, PENDING) ?? "{}");
  const question = state.question;
  if (question === null || rater !== state.rater || pending.shown !== question.shown) {
    forget();
    return;
  }
  state.pending = pending;
  byId("note").value = pending.note;
  mark(pending.preferred);
  send();
}

function show(said) {
  state.rater = said.rater;
  state.store = said.store;
  state.question = said.question;
  if (said.rater !== null) pruneDrafts(draftPlace());
  const isNamed = said.rater !== null;
  const wasResting = !byId("finished").hidden;
  byId("naming").hidden = isNamed;
  byId("asking").hidden = said.question === null;
  byId("finished").hidden = !isNamed || said.question !== null;
  byId("choices").hidden = !isNamed;
  for (const button of buttons) button.hidden = said.question === null;
  byId("who").textContent = said.rater ?? "";
  byId("rename").hidden = !isNamed || !said.may_rename;
  byId("far").hidden = !isNamed;
  if (!isNamed) {
    byId("name").focus();
    return;
  }
  showProgress(said.progress);
  byId("drawn").textContent = said.drawn;
  byId("learned").textContent = said.learned;
  byId(said.question === null ? "finished" : "asking").append(byId("learned"));
  showGuidelines(said.guidelines);
  byId("guidelines").hidden = said.guidelines === "" || said.question === null;
  if (said.question === null) {
    showRest(said, wasResting);
  } else {
    showQuestion(said.question, said.progress.num_own + 1);
  }
}

// Nothing to ask now: more may come while the page waits, or all is done.
function showRest(said, wasResting) {
  const count = said.progress.num_own;
  byId("choices").hidden = count === 0; // there is nothing to undo
  byId("own").textContent = count === 0 ? "" : `You judged ${count} ${count === 1 ? "pair" : "pairs"}, skipped ones included.`;
  byId("rest").textContent = said.rest.note;
  byId("leave").hidden = said.rest.stage !== "open";
  byId("again").hidden = said.rest.stage === "over";
  byId("all").hidden = said.rest.stage === "over" || count === 0;
  const heading = HEADINGS[said.rest.stage];
  if (!wasResting || byId("finished-heading").textContent !== heading) focusAnew("finished-heading", heading);
  if (said.rest.stage === "coming" || said.rest.stage === "paused") state.look = setTimeout(load, LOOK);
}

// What to look for: open at first, then one key away.
function showGuidelines(markup) {
  const box = byId("guidelines");
  if (markup === state.guidelines) return;
  state.guidelines = markup;
  fill(byId("guidelines-text"), markup);
  box.open = true;
}

function showProgress(progress) {
  byId("bar").max = Math.max(progress.num_pairs, 1);
  byId("bar").value = progress.num_done;
  byId("count").textContent = `${progress.num_done} of ${progress.num_pairs} judged`;
  const pace = progress.median_seconds;
  byId("pace").textContent = pace === null ? "" : `${pace.toFixed(1)} s per pair`;
  const share = progress.agreement;
  byId("agreement").textContent =
    share === null ? "" : `raters agree: ${Math.round(100 * share)} % of ${progress.num_compared} pairs`;
}

function showQuestion(question, number) {
  byId("turns").replaceChildren(...question.prompt.map(makeTurn));
  document.querySelector("#asking .asked").hidden = question.prompt.length === 0;
  fill(byId("left"), question.left);
  fill(byId("right"), question.right);
  const isBack = state.last !== null && state.last.shown === question.shown;
  byId("note").value = isBack ? state.last.note : recallDraft(draftPlace());
  keepDraft(draftPlace(), byId("note").value);
  mark(null);
  clock.spent = 0;
  clock.since = performance.now();
  state.readyAt = performance.now() + SLIP;
  byId("asking").dataset.state = "new";
  setTimeout(() => { byId("asking").dataset.state = "ready"; }, SLIP);
  window.scrollTo(0, 0);
  focusAnew("heading", `Pair ${number}: which answer is better?`);
}

// What a note that is being written is kept under: nothing of other raters, stores or pairs is taken for it.
function draftPlace() {
  return { rater: state.rater, store: state.store, shown: state.question?.shown ?? null };
}

function makeTurn(turn) {
  const block = document.createElement("div");
  block.className = "turn";
  if (turn.role) {
    const heading = document.createElement("h3");
    heading.textContent = turn.role;
    block.append(heading);
  }
  const written = document.createElement("div");
  written.className = "written";
  written.dir = "auto";
  fill(written, turn.html);
  block.append(written);
  return block;
}

// The markup is the server's own, made from Markdown with HTML off; the page's policy runs no script in it either.
function fill(element, markup) {
  element.innerHTML = markup.trim() || '<p class="soft">(no text)</p>';
}

// A heading that had the focus before is read out again only as a new element.
function focusAnew(id, text) {
  const heading = byId(id);
  const fresh = heading.cloneNode();
  fresh.textContent = text;
  heading.replaceWith(fresh);
  fresh.focus({ preventScroll: true });
}

function mark(say) {
  byId("note").readOnly = say !== null; // what is being sent stays as it is
  for (const button of buttons) button.classList.toggle("chosen", button.dataset.say === say);
  byId("left-card").classList.toggle("chosen", say === "left");
  byId("right-card").classList.toggle("chosen", say === "right");
}

function tell(text) {
  byId("status").textContent = text;
  byId("saved").textContent = text;
}

function setBusy(isBusy) {
  state.isBusy = isBusy;
  document.querySelector("main").setAttribute("aria-busy", String(isBusy));
}

function showProblem(text, mayRetry) {
  byId("problem-text").textContent = text;
  byId("retry").hidden = !mayRetry;
  byId("problem").hidden = false;
}

function hideProblem() {
  byId("problem").hidden = true;
  byId("problem-text").textContent = "";
}

function choose(say) {
  const isReady = state.question !== null && performance.now() >= state.readyAt;
  if (!isReady || state.isBusy || state.pending !== null) return;
  state.pending = {
    pair_id: state.question.pair_id,
    preferred: say,
    key: newKey(),
    seconds: secondsSpent(),
    note: byId("note").value,
    shown: state.question.shown,
  };
  remember();
  mark(say);
  send();
}

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function secondsSpent() {
  const now = document.hidden ? 0 : performance.now() - clock.since;
  return Math.round(clock.spent + now) / 1000;
}

function setKeys(hasKeys) {
  state.hasKeys = hasKeys;
  byId("keys").textContent = `Shortcut keys: ${hasKeys ? "on" : "off"}`;
}

function onKey(event) {
  const target = event.target;
  if (target instanceof Element && target.matches("input, textarea")) {
    if (event.key === "Escape" && target.id === "note") byId("heading").focus();
    return;
  }
  const isPlain = !event.repeat && !event.ctrlKey && !event.metaKey && !event.altKey && !event.isComposing;
  if (!isPlain || !state.hasKeys || state.rater === null || !byId("naming").hidden) return;
  const key = event.key.toLowerCase();
  const say = KEYS.get(key) ?? CODES.get(event.code);
  if (say) choose(say);
  else if (key === "u") undo();
  else if (key === "g" && !byId("guidelines").hidden) byId("guidelines").open = !byId("guidelines").open;
  else if (key === "n" && state.question !== null) byId("note").focus();
  else return;
  event.preventDefault();
}

document.addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clock.spent += performance.now() - clock.since;
  else clock.since = performance.now();
});
for (const button of buttons) button.addEventListener("click", () => choose(button.dataset.say));
byId("note").addEventListener("input", () => {
  if (state.question !== null) keepDraft(draftPlace(), byId("note").value);
});
byId("undo").addEventListener("click", undo);
byId("again").addEventListener("click", load);
byId("retry").addEventListener("click", () => state.retry?.());
byId("name-form").addEventListener("submit", takeName);
byId("rename").addEventListener("click", () => {
  if (state.pending !== null || state.isBusy) return;
  for (const id of ["asking", "finished", "choices", "rename"]) byId(id).hidden = true;
  byId("naming").hidden = false;
  byId("name").focus();
});
byId("keys").addEventListener("click", () => {
  setKeys(!state.hasKeys);
  store(localStorage, "klimb-keys", state.hasKeys ? null : "off");
});
setKeys(recall(localStorage, "klimb-keys") !== "off");
load();
