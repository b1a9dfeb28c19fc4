// One episode by the second: images, joints, decisions, verdicts and labels, and its score anew.

import { ArmPlot, ValuePlot } from "./plots.js";
import { block, checkpoint, el, field, fixed, linkTo, newest, planning, seconds, size,
  verdict, yesNo, DASH } from "./words.js";

const LINK_DELAY = 250; // ms after the last move; browsers refuse an address that changes faster
const SECOND = 1; // what shift and an arrow move by

export class EpisodePage {
  constructor(connection) {
    this.connection = connection;
    this.element = el("div", { class: "ep-page" });
    this.onKey = (event) => this.key(event);
  }

  /** Show an episode at a moment, in seconds; where it was last, or its begin, without one. */
  async open(id, t) {
    document.addEventListener("keydown", this.onKey);
    if (this.id === id && this.data) return this.seek(t ?? this.t);
    this.close();
    document.addEventListener("keydown", this.onKey);
    [this.id, this.data, this.shown] = [id, null, null];
    this.say(`Opening ${id}…`, "status");
    try {
      const data = await this.connection.ask("episode", { episode: id });
      if (this.id !== id) return null;
      this.build(data);
      this.seek(t ?? 0);
    } catch (error) {
      if (this.id === id) this.say(error.message, "alert");
    }
    return null;
  }

  close() {
    this.play(false);
    clearTimeout(this.linking);
    document.removeEventListener("keydown", this.onKey);
  }

  say(words, role) {
    this.element.replaceChildren(
      el("p", {}, el("a", { href: "#/episodes" }, "← All episodes")), el("p", { role }, words));
  }

  build(data) {
    this.data = data;
    const seek = (t) => this.seek(t);
    this.plots = [new ValuePlot(data, seek),
      new ArmPlot(data, "left", 0, seek), new ArmPlot(data, "right", 7, seek)];
    this.images = new Images(data.cameras);
    this.decisions = new Decisions(data, seek);
    this.trouble = el("p", { class: "ep-trouble", role: "status" });
    this.element.replaceChildren(
      this.head(),
      el("div", { class: "ep-columns" },
        el("div", { class: "ep-left" },
          this.images.element, this.trouble, this.transport(), this.plots[0].canvas,
          el("div", { class: "ep-arms" }, this.plots[1].canvas, this.plots[2].canvas),
          el("p", { class: "ep-note" }, "Grey measured, orange commanded; rad, grippers 0 closed to 1 "
            + "open. Blue are the chunks, red the brakes.")),
        el("div", { class: "ep-side" },
          this.decisions.element, ...verdicts(data, seek), ...stages(data, seek), ...labels(data),
          ...new Judgement(this, data).elements, facts(data))));
  }

  head() {
    const data = this.data;
    const chips = [
      [data.task, ""],
      [data.score == null ? "not scored" : `score ${fixed(data.score, 0)}`, ""],
      [data.success == null ? null : data.success ? "success" : "no success",
        data.success ? "ep-good" : "ep-bad"],
      [verdict(data), data.go ? "ep-good" : "ep-bad"],
      [data.state, "ep-warn"],
    ];
    const told = [data.sentence, ...data.troubles].filter(Boolean).join(" ");
    return el("header", { class: "ep-head" },
      el("a", { href: "#/episodes" }, "← All episodes"),
      el("h2", {}, data.title),
      ...chips.filter(([words]) => words).map(([words, kind]) => el("span", { class: `ep-chip ${kind}` }, words)),
      told ? el("p", { class: "ep-told" }, told) : null);
  }

  // ---- the moment

  transport() {
    this.playing = null;
    this.button = el("button", { type: "button", "aria-keyshortcuts": "p", onclick: () => this.play(!this.playing) }, "Play (p)");
    this.clock = el("output", { class: "ep-clock" });
    this.slider = el("input", { type: "range", min: 0, max: this.data.seconds, step: "any", "aria-label": "Moment of the episode",
      oninput: () => this.seek(Number(this.slider.value)) });
    this.copied = el("span", { role: "status", class: "ep-note" });
    return el("div", { class: "ep-transport" }, this.button, this.slider, this.clock,
      el("button", { type: "button", onclick: () => this.copy() }, "Copy link"), this.copied);
  }

  seek(t) {
    this.t = Math.min(Math.max(t, 0), this.data.seconds);
    this.slider.value = this.t;
    const said = `${fixed(this.t)} s of ${fixed(this.data.seconds)} s`;
    this.slider.setAttribute("aria-valuetext", said);
    this.clock.textContent = said;
    for (const plot of this.plots) plot.moveTo(this.t);
    this.decisions.moveTo(this.t);
    this.copied.textContent = "";
    this.load();
    clearTimeout(this.linking);
    this.linking = setTimeout(() => history.replaceState(null, "", linkTo(this.id, this.t)), LINK_DELAY);
  }

  /** Ask for the images of the moment; one request at a time, and the newest moment wins. */
  async load() {
    if (this.loading) return;
    this.loading = true;
    while (this.data && this.shown !== this.t) {
      const [id, t] = [this.id, this.t];
      try {
        const { header, images } = await this.connection.askImages("frames", { episode: id, seconds: t });
        if (this.id === id && this.data) {
          await this.images.show(header, images);
          this.trouble.textContent = header.troubles.join(" ");
        }
      } catch (error) {
        this.trouble.textContent = error.message;
      }
      if (this.id === id) this.shown = t;
    }
    this.loading = false;
  }

  /** Play in real time, from the begin again at the end. */
  play(on) {
    if (this.button) this.button.textContent = on ? "Pause (p)" : "Play (p)";
    cancelAnimationFrame(this.playing);
    this.playing = null;
    if (!on) return;
    if (this.t >= this.data.seconds) this.seek(0);
    let before = performance.now();
    const step = (now) => {
      this.seek(this.t + (now - before) / 1000);
      before = now;
      if (this.t >= this.data.seconds) this.play(false);
      else this.playing = requestAnimationFrame(step);
    };
    this.playing = requestAnimationFrame(step);
  }

  /** Go some images of the first camera on, or back. */
  frame(count) {
    const times = this.data.frame_times;
    const index = newest(times, this.t) + count;
    this.seek(times[Math.max(0, index)] ?? this.data.seconds);
  }

  key(event) {
    const typing = event.target.closest?.("textarea, select, input:not([type=range]):not([type=checkbox])");
    if (typing || !this.data || event.ctrlKey || event.altKey || event.metaKey) return;
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "p") this.play(!this.playing);
    else if (way && event.shiftKey) this.seek(this.t + way * SECOND);
    else if (way) this.frame(way);
    else return;
    event.preventDefault();
  }

  async copy() {
    const link = location.origin + location.pathname + linkTo(this.id, this.t);
    try {
      await navigator.clipboard.writeText(link);
      this.copied.textContent = "copied";
    } catch {
      this.copied.textContent = link; // to be copied by hand where the browser does not let a page
    }
  }
}

// ---------------------------------------------------------------- images

/** Per camera what it saw, and below it what was imagined of a chunk's end beside what came. */
class Images {
  constructor(cameras) {
    this.slots = new Map();
    const slot = (role, kind) => {
      const canvas = el("canvas", { role: "img" });
      const words = el("figcaption", {}, kind === "seen" ? role.replace("_", " ") : kind);
      const made = el("figure", { class: `ep-${kind}` }, canvas, words);
      this.slots.set(`${kind} ${role}`, { canvas, words, name: words.textContent });
      return made;
    };
    this.element = el("div", { class: "ep-images" },
      ...cameras.map((role) => el("div", {}, slot(role, "seen"),
        el("div", { class: "ep-pair" }, slot(role, "imagined"), slot(role, "reached")))));
  }

  async show(header, blobs) {
    // A canvas, not an address of its own for each: the page's policy allows no such addresses.
    const bitmaps = await Promise.all(blobs.map((blob) => createImageBitmap(blob).catch(() => null)));
    const found = new Map(header.images.map((each, i) => [`${each.kind} ${each.role}`, [each, bitmaps[i]]]));
    for (const [key, slot] of this.slots) {
      const [image, bitmap] = found.get(key) ?? [];
      const said = bitmap ? `${slot.name} at ${fixed(image.stamp)} s` : `${slot.name}: none`;
      slot.words.textContent = said;
      slot.canvas.setAttribute("aria-label", said);
      // Imagined ones are square; they show as much as the camera's, so they take its shape.
      const shape = found.get(key.replace("imagined", "seen"))?.[1] ?? bitmap;
      [slot.canvas.width, slot.canvas.height] = shape ? [shape.width, shape.height] : [4, 3];
      if (bitmap) slot.canvas.getContext("2d").drawImage(bitmap, 0, 0, shape.width, shape.height);
    }
    for (const bitmap of bitmaps) bitmap?.close();
  }
}

// ---------------------------------------------------------------- decisions and verdicts

/** The decision behind the moment, with every candidate it chose from. */
class Decisions {
  constructor(data, seek) {
    const judged = new Map(data.gate.map((result) => [result.chunk, result]));
    this.data = data;
    this.all = data.decisions.map((each) => ({ ...each, at: judged.get(each.chunk)?.t ?? each.t }));
    const jump = (step) => {
      const wanted = this.all[this.index + step];
      if (wanted) seek(wanted.at);
    };
    this.title = el("h3");
    this.body = el("div");
    this.element = el("section", { class: "ep-block" },
      el("div", { class: "ep-line" }, this.title,
        el("button", { type: "button", "aria-label": "Decision before", onclick: () => jump(-1) }, "◀"),
        el("button", { type: "button", "aria-label": "Next decision", onclick: () => jump(1) }, "▶")),
      this.body);
    this.index = null;
  }

  moveTo(t) {
    const index = Math.max(0, newest(this.all.map((each) => each.at), t));
    if (index === this.index) return;
    this.index = index;
    const decision = this.all[index];
    this.title.textContent = decision ? `Decision ${index + 1} of ${this.all.length}` : "Decisions";
    if (!decision) return this.body.replaceChildren(el("p", { class: "ep-note" }, "None was recorded."));
    const { finished, requested, spread, value, phases, denoising_steps: steps } = decision;
    const told = [`${finished} of ${requested} candidates in time`,
      spread == null ? null : `spread ${fixed(spread, 3)}`, steps ? `${steps} denoising steps` : null];
    const took = phases.map(([name, each]) => `${name} ${Math.round(1000 * each)} ms`).join(", ");
    const { score } = this.data;
    this.body.replaceChildren(
      el("p", {}, decision.reason),
      el("ol", { class: "ep-bars", start: 0 }, ...decision.candidates.map((each, i) => bar(each, i === decision.chosen))),
      el("p", {}, `Predicted ${fixed(value)}, obtained ${fixed(score == null ? null : score / 100)}.`),
      el("p", { class: "ep-note" }, `${told.filter(Boolean).join(", ")}; decided on what was seen at `
        + `${fixed(decision.t)} s. ${took}`));
    return null;
  }
}

/** A candidate's value as a bar from 0 to 1, with a tick for each value it is the mean of. */
function bar(candidate, chosen) {
  const fill = el("span", { class: "ep-fill" });
  fill.style.width = `${100 * (candidate.value ?? 0)}%`;
  const ticks = candidate.values.length > 1 ? candidate.values.filter((value) => value != null) : [];
  const marks = ticks.map((value) => {
    const mark = el("span", { class: "ep-tick" });
    mark.style.left = `${100 * value}%`;
    return mark;
  });
  const told = !candidate.finished ? "not in time" : candidate.value == null ? "no value" : fixed(candidate.value, 3);
  const spread = candidate.spread == null ? "" : ` ± ${fixed(candidate.spread, 3)}`;
  return el("li", { class: chosen ? "ep-chosen" : null },
    el("span", { class: "ep-seed" }, `seed ${candidate.seed}`),
    el("span", { class: "ep-track" }, fill, ...marks),
    el("span", { class: "ep-value" }, told + spread + (chosen ? " chosen" : "")));
}

const moment = (t, seek, words = `${fixed(t, 1)} s`) =>
  el("button", { type: "button", class: "ep-moment", onclick: () => seek(t) }, words);

/** What the safety gate said: refusals with joint, value, limit and remedy. */
function verdicts(data, seek) {
  if (!data.gate.length) return [];
  const refused = data.gate.filter((result) => !result.accepted);
  const clamped = data.gate.reduce((sum, result) => sum + result.clamped, 0);
  const limits = (result) => [result.joint, result.step < 0 ? "" : `row ${result.step}`,
    `${fixed(result.value, 3)} where ${fixed(result.limit, 3)} is allowed`].filter(Boolean).join(", ");
  return [block("Safety gate",
    el("p", {}, `${data.gate.length - refused.length} of ${data.gate.length} chunks accepted`
      + `${clamped ? `, ${clamped} values pulled back onto a limit` : ""}.`),
    el("ul", { class: "ep-list" }, ...refused.map((result) => el("li", {},
      moment(result.t, seek), el("strong", { class: "ep-bad" }, ` refused: ${result.rule}. `),
      el("span", {}, `${limits(result)}. ${result.message}`)))))];
}

/** The stages that the simulated rig's judge saw reached, and when. */
function stages(data, seek) {
  if (!data.stages?.names.length) return [];
  const rows = data.stages.names.map((name, i) => {
    const reached = data.stages.reached[i];
    return el("li", {}, reached ? moment(reached.t, seek) : DASH, ` ${name}`);
  });
  return [block("Stages by the simulated rig's judge", el("ol", { class: "ep-list" }, ...rows))];
}

// ---------------------------------------------------------------- labels, a new score, discarding

function labels(data) {
  const said = (label) => ({
    score: `score ${fixed(label.points, 0)}, ${label.success ? "success" : "no success"}`,
    stage: `+${fixed(label.points, 0)} ${label.item}`,
    deduction: `-${fixed(label.points, 0)} ${label.item}`,
    discard: "discarded",
  })[label.kind];
  const entries = data.labels.map((label) => el("li", {},
    el("strong", {}, said(label)), label.note ? `: ${label.note}` : "",
    el("div", { class: "ep-note" }, [`revision ${label.revision}`, label.operator,
      label.stamp.replace("T", " ")].filter(Boolean).join(", "))));
  return [block("Labels, the newest score counts", entries.length
    ? el("ol", { class: "ep-list" }, ...entries) : el("p", { class: "ep-note" }, "None yet."))];
}

/** The forms that score an episode again, and discard it. */
class Judgement {
  constructor(page, data) {
    this.page = page;
    this.data = data;
    this.status = el("p", { role: "status" });
    this.elements = [this.scoring(), this.discarding()];
  }

  /** Send a request, say what came of it, and show the episode as it is then. */
  async send(name, args, done) {
    const { page, data } = this;
    this.status.textContent = "Sending…";
    try {
      await page.connection.ask(name, { episode: data.id, ...args });
      const fresh = await page.connection.ask("episode", { episode: data.id });
      if (page.id !== data.id && page.id !== fresh.id) return;
      page.shown = null;
      page.build(fresh);
      page.seek(page.t);
      page.copied.textContent = done;
    } catch (error) {
      this.status.textContent = error.message;
    }
  }

  scoring() {
    const { rubric, score, success, labels: given, operator } = this.data;
    // Those of the score that counts: its stages and deductions are labelled right before it.
    const last = given.findLastIndex((label) => label.kind === "score");
    const before = given.slice(0, Math.max(last, 0)).findLastIndex((label) => label.kind === "score");
    const named = new Set(given.slice(before + 1, Math.max(last, 0)).map((label) => `${label.kind} ${label.item}`));
    const sum = el("output", {});
    const boxes = ["stage", "deduction"].flatMap((kind) => (rubric?.[`${kind}s`] ?? []).map((item) => {
      const control = el("input", { type: "checkbox", checked: named.has(`${kind} ${item.name}`),
        onchange: () => add(true) });
      return { kind, item, control };
    }));
    const ticked = (kind) => boxes.filter((box) => box.kind === kind && box.control.checked).map((box) => box.item);
    const points = (kind) => ticked(kind).reduce((total, item) => total + item.points, 0);
    const add = (ticking) => {
      sum.textContent = `${Math.max(0, points("stage") - points("deduction"))} of 100 by the boxes`;
      if (ticking) total.value = ""; // what was typed in before is another score
    };
    const total = el("input", { type: "number", min: 0, max: 100, step: "any", placeholder: "by the boxes",
      value: named.size ? null : score });
    add(false);
    const done = el("input", { type: "checkbox", checked: success === true });
    const note = el("textarea", { rows: 2 });
    const by = el("input", { type: "text", value: operator, autocomplete: "off" });
    const submit = (event) => {
      event.preventDefault();
      const names = (kind) => ticked(kind).map((item) => item.name);
      const told = { stages: names("stage"), deductions: names("deduction") };
      if (total.value !== "") told.score = Number(total.value);
      if (told.score == null && !told.stages.length) {
        this.status.textContent = "Give a total, or tick the stages that were reached; 0 is a total, too.";
        return;
      }
      this.send("score", { ...told, success: done.checked, note: note.value, operator: by.value }, "scored");
    };
    return block("Score again", el("form", { class: "ep-form", onsubmit: submit },
      ...boxes.map((box) => el("label", { class: "ep-check" }, box.control,
        `${box.item.name} (${box.kind === "stage" ? "+" : "-"}${box.item.points})`)),
      boxes.length ? el("p", {}, sum) : el("p", { class: "ep-note" }, "Its task has no rubric."),
      field("Total", total), el("label", { class: "ep-check" }, done, "the task was done"),
      field("Note", note), field("Scored by", by),
      el("button", { type: "submit" }, "Write the score"), this.status));
  }

  /** Discarding asks once more in the page; the files stay. */
  discarding() {
    if (this.data.discard_reason || this.data.state.includes("discarded")) {
      return block("Discarded", el("p", {}, this.data.discard_reason || "No reason was given."));
    }
    const reason = el("input", { type: "text", required: true, autocomplete: "off" });
    const keep = el("button", { type: "button", onclick: () => ask(false) }, "Keep it");
    const confirm = el("div", { class: "ep-confirm", role: "group", "aria-label": "Confirm", hidden: true },
      el("p", {}, "It will not be used for training or reports any more. Its files stay until a purge."),
      el("button", { type: "button", class: "ep-danger",
        onclick: () => this.send("discard", { reason: reason.value }, "discarded") }, "Discard it"), keep);
    const first = el("button", { type: "submit" }, "Discard…");
    const ask = (asking) => {
      confirm.hidden = !asking;
      first.hidden = asking;
      (asking ? keep : first).focus();
    };
    const submit = (event) => {
      event.preventDefault();
      ask(true);
    };
    return block("Discard", el("form", { class: "ep-form", onsubmit: submit },
      field("Reason", reason), first, confirm));
  }
}

// ---------------------------------------------------------------- everything else that is known

function facts(data) {
  const known = data.metadata;
  const left = Object.entries(data.left_out).map(([name, count]) => `${count} more ${name}`).join(", ");
  const all = {
    begun: data.begun.replace("T", " "), length: seconds(data.seconds), size: size(data.bytes),
    "ended by": data.outcome, prompt: data.prompt, rig: known.rig, engine: known.engine,
    checkpoint: known.checkpoint || checkpoint(data), digest: known.checkpoint_digest,
    planning: data.planning || planning(data), operator: known.operator_name, seed: known.seed,
    version: known.package_version, success: yesNo(data.success),
    "NO-GO since": data.reasons.join("; "), recovered: data.recovered, import: data.source_notes,
    "not shown": left,
  };
  const told = Object.entries(all).filter(([, words]) => words && words !== DASH);
  return block("About it", el("dl", { class: "ep-facts" },
    ...told.flatMap(([name, words]) => [el("dt", {}, name), el("dd", {}, words)])));
}
