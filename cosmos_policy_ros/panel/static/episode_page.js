// One episode by the second: its images, its plots, and what was decided and said at the moment.

import { Decisions, facts, stages, verdicts } from "./decisions.js";
import { Judgement } from "./judgement.js";
import { ArmPlot, ValuePlot } from "./plots.js";
import { begun, el, fixed, linkTo, newest, note, points, size, told, verdict }
  from "./words.js";

const LINK_DELAY = 250; // ms after the last move; browsers refuse an address that changes faster
const LEAP = 1; // s that shift and an arrow move by
const ARROWS = { ArrowLeft: -1, ArrowRight: 1 };
// Where a key is a letter, or chooses; an arrow on the slider moves by images, too.
const TYPING = "textarea, select, input:not([type=range]):not([type=checkbox])";

export class EpisodePage {
  constructor(connection) {
    this.connection = connection;
    this.element = el("div", { class: "ep-page" });
    this.onKey = (event) => this.key(event);
    connection.onState((state) => this.judgement?.heard(state));
  }

  /** Show an episode at a moment, in seconds; for NaN where it was last, or its begin. */
  async open(id, t) {
    document.addEventListener("keydown", this.onKey);
    this.address = location.hash;
    if (this.id === id && this.data) {
      this.seek(Number.isFinite(t) ? t : this.t);
      return;
    }
    this.play(false);
    this.id = id;
    this.data = null;
    this.say(`Opening ${id}…`, "status");
    try {
      const data = await this.connection.ask("episode", { episode: id });
      if (this.id === id) this.build(data, Number.isFinite(t) ? t : 0);
    } catch (error) {
      if (this.id === id) this.say(error.message, "alert");
    }
  }

  close() {
    this.play(false);
    clearTimeout(this.linking);
    document.removeEventListener("keydown", this.onKey);
  }

  say(words, role) {
    const back = el("p", {}, el("a", { href: "#/episodes" }, "← All episodes"));
    this.element.replaceChildren(back, el("p", { role }, words));
  }

  build(data, t) {
    this.play(false);
    this.data = data;
    this.shown = null;
    const seek = (to) => this.seek(to);
    const values = new ValuePlot(data, seek);
    const arms = [new ArmPlot(data, "left", 0, seek), new ArmPlot(data, "right", 7, seek)];
    this.plots = [values, ...arms];
    this.images = new Images(data.cameras);
    this.decisions = new Decisions(data, seek);
    this.trouble = el("p", { class: "ep-trouble", role: "status" });
    this.judgement = new Judgement(data, (name, args) => this.send(name, args));
    this.judgement.heard(this.connection.state);
    this.element.replaceChildren(head(data), el("div", { class: "ep-columns" },
      el("div", { class: "ep-left" },
        this.images.element, this.trouble, this.transport(), values.canvas,
        el("div", { class: "ep-arms" }, ...arms.map((arm) => arm.canvas)),
        note("Grey measured, orange commanded; rad, grippers 0 closed to 1 open; chunks blue, "
          + "brakes red.")),
      el("div", { class: "ep-side" },
        this.decisions.element, ...verdicts(data, seek), ...stages(data, seek),
        ...this.judgement.elements, facts(data, { begun: begun(data), size: size(data.bytes) }))));
    this.seek(t);
  }

  /** Send a request about the episode, and show it as it is then. */
  async send(name, args) {
    const id = this.id;
    await this.connection.ask(name, { episode: id, ...args });
    const fresh = await this.connection.ask("episode", { episode: id });
    if (this.id === id) this.build(fresh, this.t);
  }

  // ---- the moment

  transport() {
    this.button = el("button", { type: "button", "aria-keyshortcuts": "p",
      onclick: () => this.play(!this.playing) }, "Play (p)");
    this.slider = el("input", { type: "range", min: 0, max: this.data.seconds, step: "any",
      "aria-label": "Moment of the episode", oninput: () => this.seek(this.slider.valueAsNumber) });
    this.clock = el("output", { class: "ep-clock" });
    this.copied = el("span", { role: "status", class: "ep-note" });
    return el("div", { class: "ep-transport" }, this.button, this.slider, this.clock,
      el("button", { type: "button", onclick: () => this.copy() }, "Copy link"), this.copied);
  }

  seek(t) {
    this.t = Math.min(Math.max(t, 0), this.data.seconds);
    const said = `${fixed(this.t)} s of ${fixed(this.data.seconds)} s`;
    this.slider.value = this.t;
    this.slider.setAttribute("aria-valuetext", said);
    this.clock.textContent = said;
    this.copied.textContent = "";
    for (const plot of this.plots) plot.moveTo(this.t);
    this.decisions.moveTo(this.t);
    this.load();
    clearTimeout(this.linking);
    this.linking = setTimeout(() => this.carry(), LINK_DELAY);
  }

  /** Let the address carry the moment, unless it leads elsewhere by now. */
  carry() {
    if (location.hash !== this.address) return;
    history.replaceState(null, "", linkTo(this.id, this.t));
    this.address = location.hash;
  }

  /** Ask for the images of the moment: one request at a time, and the newest moment wins. */
  async load() {
    if (this.loading) return;
    this.loading = true;
    while (this.data && this.shown !== this.t) {
      const { data, images, t, trouble } = this;
      try {
        const wanted = { episode: this.id, seconds: t };
        const answer = await this.connection.ask("frames", wanted);
        await images.show(answer.header, answer.images);
        trouble.textContent = answer.header.troubles.join(" ");
      } catch (error) {
        trouble.textContent = error.message;
      }
      if (this.data === data) this.shown = t; // else another episode was opened meanwhile
    }
    this.loading = false;
  }

  /** Play in real time, from the begin again at the end. */
  play(on) {
    cancelAnimationFrame(this.playing);
    this.playing = null;
    if (this.button) this.button.textContent = on ? "Pause (p)" : "Play (p)";
    if (!on) return;
    if (this.t >= this.data.seconds) this.seek(0);
    let before = performance.now();
    const step = (now) => {
      this.seek(this.t + Math.max(0, now - before) / 1000);
      before = now;
      if (this.t >= this.data.seconds) this.play(false);
      else this.playing = requestAnimationFrame(step);
    };
    this.playing = requestAnimationFrame(step);
  }

  key(event) {
    const elsewhere = event.target.closest?.(TYPING);
    if (elsewhere || !this.data || event.ctrlKey || event.altKey || event.metaKey) return;
    const way = ARROWS[event.key];
    if (event.key === "p") this.play(!this.playing);
    else if (way && event.shiftKey) this.seek(this.t + way * LEAP);
    else if (way) this.seek(this.beside(way));
    else return;
    event.preventDefault();
  }

  /** Return the moment of the image before or after this one. */
  beside(way) {
    const times = this.data.frame_times;
    return times[Math.max(0, newest(times, this.t) + way)] ?? this.data.seconds;
  }

  async copy() {
    const link = location.origin + location.pathname + linkTo(this.id, this.t);
    try {
      await navigator.clipboard.writeText(link);
      this.copied.textContent = "copied";
    } catch {
      this.copied.textContent = link; // to be copied by hand where a page may not
    }
  }
}

function head(data) {
  const success = { true: "success", false: "no success" }[data.success];
  const chips = [
    [data.task, ""],
    [data.score == null ? "not scored" : `score ${points(data.score)}`, ""],
    [success, data.success ? "ep-good" : "ep-bad"],
    [verdict(data), data.go ? "ep-good" : "ep-bad"],
  ].filter(([said]) => said);
  const words = [told(data), ...data.troubles].filter(Boolean).join(" ");
  return el("div", { class: "ep-head" },
    el("a", { href: "#/episodes" }, "← All episodes"),
    el("h2", {}, data.title),
    ...chips.map(([said, kind]) => el("span", { class: `ep-chip ${kind}` }, said)),
    words ? el("p", { class: "ep-told" }, words) : null);
}

/** An image's place, with what it shows and when it was taken below it. */
class Slot {
  constructor(name) {
    this.name = name;
    this.canvas = el("canvas", { role: "img" });
    this.caption = el("figcaption");
    this.draw(null);
  }

  draw(bitmap, stamp = null, shape = { width: 4, height: 3 }) {
    this.stamp = stamp;
    [this.canvas.width, this.canvas.height] = [shape.width, shape.height];
    if (bitmap) this.canvas.getContext("2d").drawImage(bitmap, 0, 0, shape.width, shape.height);
    this.caption.textContent = `${this.name}${bitmap ? ` at ${fixed(stamp)} s` : ": none"}`;
    this.canvas.setAttribute("aria-label", this.caption.textContent);
    bitmap?.close();
  }
}

/** Per camera what it saw, and below it what was imagined of a chunk's end beside what came. */
class Images {
  constructor(cameras) {
    this.slots = new Map();
    const figure = (role, kind) => {
      const slot = new Slot(kind === "seen" ? role.replace("_", " ") : kind);
      this.slots.set(`${kind} ${role}`, slot);
      return el("figure", { class: `ep-${kind}` }, slot.canvas, slot.caption);
    };
    const pair = (role) =>
      el("div", { class: "ep-pair" }, figure(role, "imagined"), figure(role, "reached"));
    this.element = el("div", { class: "ep-images" },
      ...cameras.map((role) => el("div", {}, figure(role, "seen"), pair(role))));
  }

  async show(header, files) {
    const found = new Map(header.images.map((image) => [`${image.kind} ${image.role}`, image]));
    for (const [key, slot] of this.slots) if (!found.has(key)) slot.draw(null);
    await Promise.all([...found].map(async ([key, image], i) => {
      const slot = this.slots.get(key);
      if (slot.stamp === image.stamp) return; // it is there, as most are from image to image
      // What is imagined is square, and shows as much as its camera: it takes the camera's shape.
      const shape = found.get(key.replace("imagined", "seen")) ?? image;
      // Drawn from its bytes: the page's policy allows no image an address of its own.
      slot.draw(await createImageBitmap(files[i]).catch(() => null), image.stamp, shape);
    }));
  }
}
