// The operator's page. Everything shown comes from the panel's state; everything done goes to it.

import { Connection, takeToken } from "./connection.js";
import { createEpisodesView } from "./episodes.js";
import { drawCandidates, drawValues } from "./charts.js";
import { Trials } from "./trials.js";

const HELD = 1000; // ms that Arm has to be held
const URGENT = 8000; // ms for which a stop that failed keeps its place from the next state's sentence
const KEYS = { x: "disarm", s: "start", e: "end", p: "pause", r: "resume", g: "go_to_start", n: "reset", c: "self_check", l: "prepare", t: "lead", h: "let_go", k: "clutch", d: "demonstrate", b: "drop" };
const NODE_NAMES = { policy_node: "policy", recorder_node: "recorder", arm_interface_node: "arm interface", sim_rig_node: "simulated rig" };
const PLAIN = ["disarm", "end", "pause", "resume", "go_to_start", "prepare", "lead", "let_go", "clutch", "drop"]; // asked for without arguments

const $ = (id) => document.getElementById(id);
const make = (tag, text = "", properties = {}) =>
  Object.assign(document.createElement(tag), { textContent: text }, properties);
const isText = (element) => element?.matches?.('input:not([type="checkbox"], [type="range"]), textarea');

takeToken(); // before the socket is opened
const connection = new Connection({ heard, images: showImages, lost, refused });
const episodes = createEpisodesView($("episodes"), connection);
let state = null;
let tasks = {};
let urgent = 0; // until when the sentence is not the state's, by performance.now()

// ------------------------------------------------------------------ state

function heard(now) {
  const before = state;
  state = now;
  if (!before) {
    urgent = 0;
    loadTasks();
    route(); // what was asked for and not answered is asked for again
  }
  document.body.classList.remove("gone");
  $("login").hidden = true;
  if (performance.now() > urgent) showSentence(now.tone, now.sentence);
  showNodes(now);
  showRecording(now);
  showActions(now);
  showThinking(now);
  showRubric(now, before);
  trials.heard(now);
  if (now.refusals.arm) endArming(); // stopped elsewhere, or armed by now
  sound(before, now);
}

function lost(reason) {
  state = null;
  endArming();
  document.body.classList.add("gone");
  showSentence("fault", `${reason}: this page shows nothing new and can stop nothing. A run goes on without it; use the emergency stop if need be.`);
  for (const button of document.querySelectorAll("#actions button, .actions button, #self_check")) button.setAttribute("aria-disabled", "true");
}

function refused() {
  lost("This page was not let in");
  showSentence("fault", "Open the address that the panel printed at its start, or give its token or password.");
  $("login").hidden = false;
  $("secret").focus();
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  localStorage.setItem("token", $("secret").value.trim());
  $("secret").value = "";
  $("login-message").textContent = "asking …";
  connection.open();
});

function showSentence(tone, text) {
  $("sentence").className = tone;
  if ($("sentence").textContent !== text) $("sentence").textContent = text;
}

function showNodes(now) {
  const items = Object.entries(now.nodes).map(([name, presence]) =>
    make("li", NODE_NAMES[name] + (presence === "alive" ? "" : `: ${presence}`), { className: presence }));
  if (now.policy && now.nodes.policy_node === "alive") {
    const { armed } = now.policy;
    items.push(make("li", armed ? "ARMED" : "disarmed", { className: armed ? "armed" : "" }));
  }
  replaceIfChanged($("nodes"), items);
}

// Screen readers and the focus are left alone by what has not changed.
function replaceIfChanged(parent, children) {
  const same = parent.childElementCount === children.length &&
    [...parent.children].every((child, i) => child.isEqualNode(children[i]));
  if (!same) parent.replaceChildren(...children);
}

function showRecording(now) {
  const { recorder, recording } = now;
  $("recording").classList.toggle("on", recording);
  $("recording").textContent = recording ? `● REC ${Math.floor(recorder.seconds)} s` : now.records ? "not recording" : "recorder off";
  $("quality").textContent = !recorder?.episode_id ? "" : recorder.go ? "GO" : "NO-GO";
  $("quality").className = recorder?.go ? "go" : "no-go";
  $("quality").title = recorder?.reasons.join("; ") ?? "";
  $("disk").textContent = now.minutes_left === null ? `${now.free_gb} GB free` : `${Math.round(now.minutes_left)} min of disk`;
}

function showActions(now) {
  for (const [name, refusal] of Object.entries(now.refusals)) {
    const button = document.querySelector(`button#${name}`);
    if (!button) continue;
    // Not `disabled`: a focused button would lose the focus, and its reason could not be read.
    button.setAttribute("aria-disabled", String(refusal !== ""));
    button.title = refusal;
  }
  $("teleoperation").hidden = !now.leaders;
  const counts = Object.entries(now.demonstrations ?? {}).map(([task, count]) => `${task}: ${count}`);
  $("demonstrations").textContent = `Demonstrations so far: ${counts.join(", ") || "none"}`;
  $("reset").hidden = !now.simulated || Boolean(now.trials); // a trial's scene is laid out by Prepare
}

function showThinking(now) {
  const { decision, refusal, values } = now;
  $("candidates-title").textContent = decision
    ? `Candidates of chunk ${decision.chunk}: ${decision.finished} of ${decision.requested}` : "Candidates";
  $("candidates").setAttribute("aria-label", drawCandidates($("candidates"), decision));
  $("candidates").title = decision?.reason ?? "";
  $("values").setAttribute("aria-label", drawValues($("values"), values));
  $("refusal").textContent = refusal
    ? `chunk ${refusal.chunk}${refusal.joint ? `, ${refusal.joint}` : ""}: ${refusal.message}` : "none in this run";
  $("refusal").className = refusal ? "some" : "";
}

// ------------------------------------------------------------------ images

const ROLES = ["left_wrist", "primary", "right_wrist"];
const figures = new Map();
for (const name of [...ROLES, ...ROLES.map((role) => `imagined/${role}`)]) {
  const figure = make("figure");
  const title = make("span", name.replace("imagined/", "imagined: ").replace("_", " "));
  const note = make("span");
  const caption = make("figcaption");
  caption.append(title, note);
  const canvas = make("canvas", "", { width: 320, height: 240 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", title.textContent);
  figure.append(canvas, caption);
  figure.dataset.source = name;
  figure.className = name.startsWith("imagined") ? "imagined" : "";
  $("images").append(figure);
  figures.set(name, { figure, note, canvas });
}

async function showImages(header, blobs) {
  const bitmaps = await Promise.all(blobs.map((blob) => createImageBitmap(blob).catch(() => null)));
  header.names.forEach((name, index) => {
    const bitmap = bitmaps[index];
    const canvas = figures.get(name)?.canvas;
    if (!bitmap || !canvas) return;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    canvas.dataset.shown = String(Number(canvas.dataset.shown ?? 0) + 1);
    bitmap.close();
  });
  for (const [name, note] of Object.entries(header.notes)) {
    const shown = figures.get(name);
    if (!shown) continue;
    if (note.freshness) shown.figure.className = note.freshness;
    const age = note.age === undefined ? `chunk ${note.chunk}` : note.age < 0.2 ? "live" : `${note.age.toFixed(1)} s old`;
    shown.note.textContent = note.problem || age;
  }
}

// ------------------------------------------------------------------ actions

const trials = new Trials({ connection, act, canvas: figures.get("primary").canvas });

async function act(name, args = {}) {
  const answer = $("answer");
  const refusal = state?.refusals?.[name];
  if (refusal) {
    answer.className = "refused";
    answer.textContent = refusal;
    return null;
  }
  try {
    const result = await connection.ask(name, args);
    answer.className = "";
    answer.textContent = result.message ?? "";
    return result;
  } catch (error) {
    answer.className = "refused";
    answer.textContent = error.message;
    return null;
  }
}

// Never greyed, never checked beforehand.
async function stop() {
  endArming();
  showSentence("hold", "Stopping …");
  urgent = performance.now() + URGENT;
  try {
    const { message } = await connection.ask("stop");
    $("answer").className = "";
    $("answer").textContent = message;
    urgent = 0;
  } catch (error) {
    showSentence("fault", `NOT STOPPED: ${error.message}. Use the emergency stop.`);
    urgent = performance.now() + URGENT;
  }
}

function begin(name) {
  document.activeElement.blur(); // from now on space stops, wherever something was typed
  return act(name, { task: $("task").value, prompt: $("prompt").value, operator: $("operator").value });
}

const doing = {
  ...Object.fromEntries(PLAIN.map((name) => [name, () => act(name)])),
  start: () => begin("start"),
  demonstrate: () => begin("demonstrate"),
  reset: () => act("reset", { seed: Math.floor(Math.random() * 2 ** 31), prompt: $("prompt").value }),
  self_check: selfCheck,
};
for (const [name, run] of Object.entries(doing)) $(name).addEventListener("click", run);
$("stop").addEventListener("pointerdown", stop); // at the touch, not at its end
$("stop").addEventListener("click", (event) => event.detail === 0 && stop()); // by Enter

// Arming takes a second of holding a button or a key; whatever interrupts it arms nothing.
let arming = 0;
function beginArming() {
  if (arming) return;
  if (state?.refusals?.arm) {
    act("arm");
    return;
  }
  $("arm").classList.add("held");
  arming = setTimeout(() => {
    endArming();
    act("arm");
  }, HELD);
}
function endArming() {
  clearTimeout(arming);
  arming = 0;
  $("arm").classList.remove("held");
}
$("arm").addEventListener("pointerdown", beginArming);
for (const end of ["pointerup", "pointerleave", "pointercancel"]) $("arm").addEventListener(end, endArming);
window.addEventListener("blur", endArming);
window.addEventListener("blur", () => trials.flip(false));

async function selfCheck() {
  const result = await act("self_check");
  if (!result) return;
  $("check-rows").replaceChildren(...result.rows.map((row) => {
    const line = make("tr", "", { className: row.passed ? "passed" : "failed" });
    const found = make("td", row.found);
    if (row.advice) found.append(make("div", `→ ${row.advice}`, { className: "advice" }));
    line.append(make("td", `${row.passed ? "✓" : "✕"} ${row.check}`), found);
    return line;
  }));
}

// ------------------------------------------------------------------ tasks

async function loadTasks() {
  const answer = await connection.ask("tasks").catch(() => null);
  if (!answer) return;
  tasks = answer.tasks;
  const chosen = $("task").value || state?.task;
  $("task").replaceChildren(...Object.keys(tasks).map((name) => make("option", name, { value: name })));
  if (chosen in tasks) $("task").value = chosen;
  showPrompts();
}

function showPrompts() {
  const task = tasks[$("task").value];
  $("prompt").replaceChildren(...(task?.prompts ?? []).map((text) => make("option", text, { value: text })));
  $("task").title = task?.description ?? "";
}
$("task").addEventListener("change", showPrompts);
// Once something is chosen, keys act again.
for (const list of [$("task"), $("prompt")]) list.addEventListener("change", () => list.blur());
$("operator").value = localStorage.getItem("operator") ?? "";
$("operator").addEventListener("change", () => localStorage.setItem("operator", $("operator").value));
$("choose").addEventListener("submit", (event) => event.preventDefault());

// ------------------------------------------------------------------ the rubric

function showRubric(now, before) {
  const unscored = now.unscored;
  $("rubric").hidden = !unscored;
  $("checks").hidden = Boolean(unscored); // one screen: what is to be done now has the room
  if (!unscored || (before?.unscored?.episode === unscored.episode && $("items").dataset.episode === unscored.episode)) return;
  $("items").dataset.episode = unscored.episode;
  $("rubric-title").textContent = `Score ${unscored.episode}`;
  $("skip").hidden = Boolean(unscored.trial);
  forgetDiscard();
  const item = ({ name, points }, index, kind) => {
    const label = make("label");
    const box = make("input", "", { type: "checkbox", value: name });
    box.dataset.kind = kind;
    box.dataset.points = points;
    label.append(box, `${name} `, make("kbd", kind === "stage" ? `${index + 1}` : `⇧${index + 1}`),
      make("span", `${kind === "stage" ? "+" : "−"}${points}`));
    return label;
  };
  $("items").replaceChildren(
    ...(unscored.rubric?.stages ?? []).map((each, i) => item(each, i, "stage")),
    ...(unscored.rubric?.deductions ?? []).map((each, i) => item(each, i, "deduction")));
  for (const input of [$("score"), $("note")]) input.value = "";
  $("success").checked = false;
  showSum();
  ($("items").querySelector("input") ?? $("score")).focus();
}

const boxes = (kind) => [...$("items").querySelectorAll(`input[data-kind="${kind}"]`)];
const ticked = (kind) => boxes(kind).filter((box) => box.checked);
const points = (kind) => ticked(kind).reduce((sum, box) => sum + Number(box.dataset.points), 0);

function showSum() {
  $("items").dataset.zero = "";
  const total = Math.max(0, points("stage") - points("deduction"));
  $("sum").textContent = `Sum: ${total} of 100`;
}
$("items").addEventListener("change", () => {
  showSum();
  // Every stage reached is a success, unless the operator says otherwise.
  $("success").checked = boxes("stage").length > 0 && boxes("stage").every((box) => box.checked);
});

$("rubric").addEventListener("submit", async (event) => {
  event.preventDefault();
  const typed = $("score").value.trim().replace(",", ".");
  if (typed && !Number.isFinite(Number(typed))) {
    $("answer").className = "refused";
    $("answer").textContent = `score: '${typed}' is no number; give 0 to 100, or leave it out for the sum`;
    return;
  }
  const names = (kind) => ticked(kind).map((box) => box.value);
  const nothing = !typed && ticked("stage").length + ticked("deduction").length === 0;
  // Enter may have been meant for something else.
  if (nothing && $("items").dataset.zero !== "yes") {
    $("items").dataset.zero = "yes";
    $("sum").textContent = "Nothing is ticked: save once more for 0 of 100.";
    return;
  }
  await act("score", {
    episode: state?.unscored?.episode ?? "",
    score: typed ? Number(typed) : nothing ? 0 : null,
    stages: names("stage"), deductions: names("deduction"),
    success: $("success").checked, operator: $("operator").value, note: $("note").value,
  });
});
$("skip").addEventListener("click", () => act("skip"));
// A second press confirms; nothing is deleted, but the episode is not learnt from.
$("discard").addEventListener("click", async () => {
  if ($("discard").dataset.sure !== "yes") {
    $("discard").dataset.sure = "yes";
    $("discard").textContent = state?.unscored?.trial ? "Really make it again" : "Really discard";
    setTimeout(forgetDiscard, 4000);
    return;
  }
  forgetDiscard();
  const again = state?.unscored?.trial ? "the trial is to be made again" : "";
  await act("discard", { episode: state?.unscored?.episode ?? "", reason: $("note").value || again });
});
function forgetDiscard() {
  $("discard").dataset.sure = "";
  $("discard").textContent = state?.unscored?.trial ? "Make this trial again …" : "Discard …";
}

// ------------------------------------------------------------------ keys

// Space stops from anywhere but a text field; so it ticks no box and presses no button.
window.addEventListener("keydown", (event) => {
  if (isText(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.code === "Space") {
    event.preventDefault();
    if (!event.repeat) stop();
  } else if (event.repeat || $("trial").hidden || event.target.matches?.("select")) {
    return; // a key that is still held arms nothing once more; letters choose in a list
  } else if (event.key === "Enter" && event.target.matches?.("#arm")) {
    event.preventDefault();
    beginArming();
  } else if (event.key.toLowerCase() === "a") {
    beginArming();
  } else if (event.key.toLowerCase() === "f") {
    trials.flip(true);
  } else {
    pressed(event);
  }
}, true);
window.addEventListener("keyup", (event) => {
  if (event.code === "Space" && !isText(event.target)) event.preventDefault();
  else if (event.key === "Enter" || event.key.toLowerCase() === "a") endArming();
  else if (event.key.toLowerCase() === "f") trials.flip(false);
}, true);

function pressed(event) {
  const digit = /^Digit([1-9])$/.exec(event.code);
  if (digit && !$("rubric").hidden) {
    const box = boxes(event.shiftKey ? "deduction" : "stage")[digit[1] - 1];
    box?.click();
    event.preventDefault();
  } else if (event.key.toLowerCase() === "y" && !$("rubric").hidden) {
    $("success").checked = !$("success").checked;
  } else if (event.key.toLowerCase() in KEYS) {
    doing[KEYS[event.key.toLowerCase()]]();
  }
}

// ------------------------------------------------------------------ sound

// Two low tones when the arms hold or something is lost, two rising ones at a run's end.
let audio = null;
window.addEventListener("pointerdown", () => { audio ??= new AudioContext(); }, { once: true });
window.addEventListener("keydown", () => { audio ??= new AudioContext(); }, { once: true });

function sound(before, now) {
  if (!before) return;
  if ((now.tone === "hold" || now.tone === "fault") && before.tone !== now.tone) beep(330, 247);
  else if (before.policy?.run_id && !now.policy?.run_id) beep(523, 784);
}

function beep(...tones) {
  document.body.dataset.sounded = tones.join(" ");
  tones.forEach((frequency, index) => {
    if (!audio) return;
    const oscillator = audio.createOscillator();
    const volume = audio.createGain();
    volume.gain.value = 0.15;
    oscillator.frequency.value = frequency;
    oscillator.connect(volume).connect(audio.destination);
    oscillator.start(audio.currentTime + 0.2 * index);
    oscillator.stop(audio.currentTime + 0.2 * index + 0.16);
  });
}

// ------------------------------------------------------------------ views

function route() {
  if (takeToken()) connection.open(); // a new address was put into this very tab
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  const trial = !path.startsWith("/episodes");
  $("trial").hidden = !trial;
  $("episodes").hidden = trial;
  $("to-trial").setAttribute("aria-current", trial ? "page" : "false");
  $("to-episodes").setAttribute("aria-current", trial ? "false" : "page");
  connection.showCameras(trial && !document.hidden);
  if (trial) episodes.hide();
  else episodes.show(path, query);
}
window.addEventListener("hashchange", route);
document.addEventListener("visibilitychange", route);
route();
