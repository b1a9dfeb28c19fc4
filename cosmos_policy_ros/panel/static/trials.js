// The trials of a protocol: what to lay out, its picture over the camera, and the table at the end.
//
// The picture is mixed with the camera's image by the browser alone; nothing of it leaves the page.

import { el } from "./words.js";

const SURE = 8000; // ms in which a second press confirms

export class Trials {
  // ask(name, args) resolves to an answer, or null when it was refused and that is shown.
  constructor({ connection, act, canvas }) {
    Object.assign(this, { connection, act, canvas });
    this.card = document.getElementById("trials");
    this.title = document.getElementById("trials-title");
    this.facts = document.getElementById("trials-facts");
    this.blend = document.getElementById("trials-blend");
    this.level = document.getElementById("blend");
    this.note = document.getElementById("trials-note");
    this.button = document.getElementById("unseal");
    this.table = document.getElementById("trials-table");
    this.picture = ""; // which one is asked for or shown
    this.problem = ""; // why it is not
    this.overlay = null;
    this.level.addEventListener("input", () => this.mix());
    this.button.addEventListener("click", () => this.unseal());
  }

  heard(now) {
    const { trials } = now;
    this.now = trials;
    this.card.hidden = !trials;
    document.body.classList.toggle("sealed", Boolean(trials?.sealed));
    for (const id of ["task", "prompt"]) document.getElementById(id).closest("label").hidden = Boolean(trials);
    if (!trials) return;
    const { trial, number, total } = trials;
    this.say(this.title, trial ? `Trial ${number} of ${total}` : total ? `All ${total} trials are made` : "Trials");
    document.getElementById("prepare").hidden = !trial;
    this.showFacts(trial, Boolean(now.unscored)); // its boxes have the room
    this.look(trials.laying_out && trial ? trial.picture : "");
    this.say(this.note, [
      this.problem,
      trials.repeated ? `Not counted, and made again: ${trials.repeated}.` : "",
      trial || !total ? "" : `The tables are printed by: ${trials.command}`,
    ].filter(Boolean).join(" "));
    this.button.hidden = !total || Boolean(now.unscored);
    if (!this.sure) this.name();
    this.blend.hidden = !this.overlay;
  }

  say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  showFacts(trial, scoring) {
    const all = trial ? [["task", `${trial.task}, ${trial.condition}`], ["state", `${trial.state}`],
      ["prompt", trial.prompt], ["lay out", trial.setup], ["this one", trial.place],
      ["picture", trial.picture ? "" : "none was taken: see cosmos protocol"],
      ["contender", trial.contender]] : [];
    const told = all.filter(([, text]) => text).slice(0, scoring ? 2 : undefined);
    const words = JSON.stringify(told);
    if (this.facts.dataset.told === words) return;
    this.facts.dataset.told = words;
    this.facts.replaceChildren(...told.flatMap(([name, text]) =>
      [el("dt", {}, name), el("dd", { class: name === "this one" ? "place" : null }, text)]));
  }

  // ---- the picture

  async look(picture) {
    if (picture === this.picture) return;
    this.picture = picture;
    this.problem = "";
    this.remove();
    if (!picture) return;
    try {
      const { images } = await this.connection.ask("picture");
      const bitmap = await createImageBitmap(images[0]);
      if (picture === this.picture) this.show(bitmap);
      bitmap.close();
    } catch (error) {
      if (picture === this.picture) this.problem = error.message;
    }
  }

  show(bitmap) {
    this.overlay = el("canvas", { role: "img", "aria-label": "picture of the state", id: "reference",
      width: bitmap.width, height: bitmap.height });
    this.overlay.getContext("2d").drawImage(bitmap, 0, 0);
    const stack = el("div", { class: "stack" });
    this.canvas.replaceWith(stack);
    stack.append(this.canvas, this.overlay);
    this.blend.hidden = false;
    this.mix();
  }

  remove() {
    if (!this.overlay) return;
    this.overlay.parentElement.replaceWith(this.canvas);
    this.overlay = null;
    this.blend.hidden = true;
  }

  mix() {
    const level = this.level.valueAsNumber;
    if (this.overlay) this.overlay.style.opacity = this.flipped ? (level < 0.5 ? 1 : 0) : level;
  }

  // Show the picture alone where the camera is the stronger one, else the camera alone.
  flip(on) {
    this.flipped = on;
    this.mix();
  }

  // ---- the table

  name() {
    const { sealed, left } = this.now;
    this.say(this.button, !sealed ? "Show the table" : left ? "Unseal now …" : "Unseal and show the table");
  }

  async unseal() {
    const { sealed, left } = this.now;
    if (sealed && left && !this.sure) {
      this.sure = setTimeout(() => this.forget(), SURE);
      this.say(this.button, `Really unseal with ${left} trials left? The report will say that the operator may have known who ran in them.`);
      return;
    }
    const sure = Boolean(this.sure);
    this.forget();
    const answer = await this.act("unseal", { before_the_end: sure });
    if (answer) this.showTable(answer.table);
  }

  forget() {
    clearTimeout(this.sure);
    this.sure = 0;
    this.name();
  }

  showTable(lines) {
    const close = el("button", { type: "button", onclick: () => { this.table.hidden = true; } }, "Close");
    this.table.replaceChildren(close, ...markdown(lines));
    this.table.hidden = false;
    close.focus();
  }
}

// Of Markdown what the tables have: a heading, paragraphs, tables, **bold** and *italic*.
function markdown(lines) {
  const found = [];
  for (let i = 0; i < lines.length;) {
    const kind = kindOf(lines[i]);
    const run = [];
    while (i < lines.length && kindOf(lines[i]) === kind) run.push(lines[i++]);
    if (kind === "table") found.push(tableOf(run));
    else if (kind === "heading") found.push(...run.map((line) => el("h2", {}, line.replace(/^#+ /, ""))));
    else if (kind === "list") found.push(el("ul", {}, ...run.map((line) => el("li", {}, ...inline(line.slice(2))))));
    else if (kind === "text") found.push(el("p", {}, ...inline(run.join(" "))));
  }
  return found;
}

const kindOf = (line) =>
  (line.startsWith("|") ? "table" : line.startsWith("#") ? "heading" : line.startsWith("- ") ? "list" : line ? "text" : "");

function tableOf(lines) {
  const rows = lines.map((line) => line.slice(1, line.lastIndexOf("|")).split("|").map((cell) => cell.trim()));
  const [head, , ...others] = rows;
  return el("table", {},
    el("thead", {}, el("tr", {}, ...head.map((cell) => el("th", { scope: "col" }, ...inline(cell))))),
    el("tbody", {}, ...others.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, ...inline(cell)))))));
}

function inline(text) {
  return text.split(/(\*\*[^*]+\*\*|\*[^*]+\*)/).filter(Boolean).map((part) => {
    if (part.startsWith("**")) return el("strong", {}, part.slice(2, -2));
    return part.startsWith("*") && part.length > 2 ? el("em", {}, part.slice(1, -1)) : part;
  });
}
