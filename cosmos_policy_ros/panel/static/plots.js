// What is drawn: curves over an episode's time with a cursor, and values against scores.

import { el, fixed, newest, note, tabulate } from "./words.js";

const STEPS = [0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800]; // s between two marks of an axis
const HEADS = ["predicted", "decisions", "mean predicted", "mean obtained"];
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Fit a canvas to its place and the screen's pixels; return what draws on it in CSS pixels. */
function sharp(canvas) {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

function line(context, points) {
  context.beginPath();
  points.forEach(([x, y], index) => (index ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}

function dot(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

function write(context, text, x, y, align = "left") {
  context.textAlign = align;
  context.fillText(text, x, y);
}

/** A plot over the episode's time, with a cursor that can be clicked and dragged. */
class TimePlot {
  constructor(label, kind, duration, seek) {
    this.duration = Math.max(duration, 0.001); // of a single message it is 0
    this.t = 0;
    this.canvas = el("canvas", { class: kind, role: "img", "aria-label": label });
    const move = (event) => {
      if (event.type === "pointerdown") this.canvas.setPointerCapture(event.pointerId);
      else if (!event.buttons) return;
      seek(this.timeAt(event.offsetX));
    };
    this.canvas.addEventListener("pointerdown", move);
    this.canvas.addEventListener("pointermove", move);
    // Also the first time that it has a place and a size.
    new ResizeObserver(() => this.paint()).observe(this.canvas);
  }

  get left() { return 112; }
  get right() { return this.canvas.clientWidth - 78; }
  x(t) { return this.left + (t / this.duration) * (this.right - this.left); }
  timeAt(x) { return ((x - this.left) / (this.right - this.left)) * this.duration; }

  /** Draw everything but the cursor once; it is then copied below each cursor. */
  paint() {
    if (!this.canvas.clientWidth) return;
    const context = sharp(this.canvas);
    context.font = "11px system-ui, sans-serif";
    this.drawAxis(context);
    this.drawBase(context);
    this.base = document.createElement("canvas");
    [this.base.width, this.base.height] = [this.canvas.width, this.canvas.height];
    this.base.getContext("2d").drawImage(this.canvas, 0, 0);
    this.moveTo(this.t);
  }

  moveTo(t) {
    this.t = t;
    if (!this.base) return;
    const context = this.canvas.getContext("2d");
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    context.clearRect(0, 0, width, height);
    context.drawImage(this.base, 0, 0, width, height);
    context.strokeStyle = color("--text");
    context.lineWidth = 1;
    line(context, [[this.x(t), 0], [this.x(t), height - 14]]);
    this.drawNumbers(context, t);
  }

  drawAxis(context) {
    const height = this.canvas.clientHeight;
    const most = (this.right - this.left) / 48; // px that a time takes
    const step = STEPS.find((each) => this.duration / each <= most) ?? this.duration / most;
    context.fillStyle = color("--dim");
    context.strokeStyle = color("--line");
    for (let t = 0; t <= this.duration; t += step) {
      line(context, [[this.x(t), 0], [this.x(t), height - 14]]);
      write(context, `${Number(t.toFixed(1))} s`, this.x(t), height - 3, "center");
    }
  }

  drawNumbers() {}
}

/** The seven joints of an arm, one below the other: what was commanded over what was measured. */
export class ArmPlot extends TimePlot {
  constructor(data, side, first, seek) {
    const said = `Joints of the ${side} arm over time: measured, and commanded over it.`;
    super(said, "ep-arm", data.seconds, seek);
    this.names = data.joints.slice(first, first + 7).map((name) => name.replace(/[/_]/g, " "));
    this.measured = data.states.find((each) => each.side === side) ?? { t: [], positions: [] };
    const rows = (chunk) => chunk.positions.slice(first, first + 7);
    this.chunks = data.chunks.map((chunk) => ({ ...chunk, rows: rows(chunk) }));
    this.ranges = this.names.map((_, joint) => this.rangeOf(joint));
  }

  /** Of a joint's positions: at least 0.05, or the noise of one at rest would fill its row. */
  rangeOf(joint) {
    let [low, high] = [Infinity, -Infinity];
    const commanded = this.chunks.map((chunk) => chunk.rows[joint]);
    for (const values of [this.measured.positions[joint] ?? [], ...commanded]) {
      for (const value of values) {
        if (value == null) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
    if (low > high) return [0, 1];
    const spare = Math.max(0, 0.05 - (high - low)) / 2 + 0.08 * (high - low);
    return [low - spare, high + spare];
  }

  get row() { return (this.canvas.clientHeight - 16) / 7; }

  y(joint, value) {
    const [low, high] = this.ranges[joint];
    return this.row * (joint + 1) - 2 - ((value - low) / (high - low)) * (this.row - 4);
  }

  drawBase(context) {
    const height = this.canvas.clientHeight - 16;
    for (const chunk of this.chunks) {
      context.fillStyle = color(chunk.kind === "brake" ? "--bad" : "--accent");
      context.globalAlpha = 0.1;
      const width = this.x(chunk.end) - this.x(chunk.start);
      context.fillRect(this.x(chunk.start), 0, Math.max(1, width), height);
      context.globalAlpha = 0.7;
      context.fillRect(this.x(chunk.start), 0, 1, height);
    }
    context.globalAlpha = 1;
    // A brake may be commanded for longer than the episode was recorded.
    context.save();
    context.beginPath();
    context.rect(0, 0, this.right, height);
    context.clip();
    this.names.forEach((name, joint) => {
      const floor = this.row * (joint + 1);
      context.strokeStyle = color("--line");
      line(context, [[0, floor], [this.canvas.clientWidth, floor]]);
      context.fillStyle = color("--text");
      write(context, name, 2, this.row * (joint + 0.5) + 4);
      context.lineWidth = 1.5;
      context.strokeStyle = color("--dim");
      this.curve(context, joint, this.measured.t, this.measured.positions[joint] ?? []);
      context.strokeStyle = color("--warn");
      for (const chunk of this.chunks) this.curve(context, joint, chunk.t, chunk.rows[joint]);
      context.lineWidth = 1;
    });
    context.restore();
  }

  curve(context, joint, times, values) {
    const known = times.map((t, i) => [t, values[i]]).filter(([, value]) => value != null);
    line(context, known.map(([t, value]) => [this.x(t), this.y(joint, value)]));
  }

  drawNumbers(context, t) {
    const at = newest(this.measured.t, t);
    const chunk = this.chunks.findLast((each) => each.start <= t && t <= each.end);
    const row = chunk ? newest(chunk.t, t) : -1;
    this.names.forEach((_, joint) => {
      const y = this.row * (joint + 0.5) + 4;
      context.fillStyle = color("--text");
      const measured = at < 0 ? null : this.measured.positions[joint][at];
      write(context, fixed(measured), this.right + 38, y, "right");
      context.fillStyle = color("--warn");
      if (row >= 0) write(context, fixed(chunk.rows[joint][row]), this.right + 76, y, "right");
    });
  }
}

/** Predicted values over time, the score that was obtained, what the gate said, and the stages. */
export class ValuePlot extends TimePlot {
  constructor(data, seek) {
    const last = data.values.at(-1);
    const said = last ? `last predicted ${fixed(last.value)}` : "none was predicted";
    super(`Values over time: ${said}, obtained ${fixed(data.score && data.score / 100)}.`,
      "ep-values", data.seconds, seek);
    this.data = data;
  }

  y(value) { return 8 + (1 - value) * (this.canvas.clientHeight - 38); }

  drawBase(context) {
    const { values, score, gate, stages } = this.data;
    const floor = this.canvas.clientHeight - 16;
    context.fillStyle = color("--text");
    write(context, "value", 2, 14);
    context.fillStyle = color("--dim");
    write(context, "1", this.left - 6, this.y(1) + 4, "right");
    write(context, "0", this.left - 6, this.y(0) + 4, "right");
    write(context, "gate", this.left - 6, floor, "right");
    for (const result of gate) {
      context.fillStyle = color(result.accepted ? "--good" : "--bad");
      context.fillRect(this.x(result.t) - 1, floor - 8, 3, 8);
    }
    if (score != null) {
      context.strokeStyle = color("--good");
      context.setLineDash([5, 4]);
      line(context, [[this.left, this.y(score / 100)], [this.right, this.y(score / 100)]]);
      context.setLineDash([]);
    }
    context.strokeStyle = context.fillStyle = color("--accent");
    context.lineWidth = 2;
    // A value holds until the next one.
    const ends = [...values.slice(1).map((each) => each.t), this.data.seconds];
    line(context, values.flatMap(({ t, value }, i) =>
      [[this.x(t), this.y(value)], [this.x(ends[i]), this.y(value)]]));
    for (const each of values) dot(context, this.x(each.t), this.y(each.value), 3);
    context.lineWidth = 1;
    context.fillStyle = color("--warn");
    for (const stage of stages?.reached ?? []) write(context, "⚑", this.x(stage.t), 14, "center");
  }

  drawNumbers(context, t) {
    const { values, score } = this.data;
    const value = values[newest(values.map((each) => each.t), t)]?.value;
    context.fillStyle = color("--accent");
    write(context, fixed(value), this.right + 38, 24, "right");
    context.fillStyle = color("--good");
    write(context, fixed(score == null ? null : score / 100), this.right + 76, 24, "right");
  }
}

export class Calibration {
  constructor(connection) {
    this.connection = connection;
    this.canvas = el("canvas", { class: "ep-scatter", role: "img" });
    this.status = el("p", { role: "status" });
    this.numbers = el("div");
    this.element = el("details", { class: "ep-block", ontoggle: () => this.refresh() },
      el("summary", {}, "Predicted values against the scores obtained"),
      el("div", { class: "ep-calibration" },
        this.canvas, el("div", {}, this.status, this.numbers)));
    addEventListener("resize", () => this.found && this.element.open && this.paint());
  }

  /** Ask until every episode was read: the server does some seconds of them at a time. */
  async refresh() {
    if (!this.element.open || this.asking) return;
    this.asking = true;
    try {
      do {
        this.found = await this.connection.ask("calibration");
        this.draw();
      } while (this.found.left && this.element.isConnected);
    } catch (error) {
      this.status.textContent = error.message;
    }
    this.asking = false;
  }

  draw() {
    const { count, episodes, correlation, bias, left, bins } = this.found;
    const varies = correlation == null ? "all scores alike" : `correlation ${fixed(correlation)}`;
    const said = count
      ? `${count} decisions of ${episodes} scored episodes: ${varies}, predicted less obtained `
        + `${fixed(bias)} in the mean.`
      : "No scored episode carries predicted values yet.";
    this.status.textContent = left ? `${said} ${left} more episodes are being read…` : said;
    this.canvas.setAttribute("aria-label", `Scatter plot. ${said} The table has its means.`);
    this.numbers.replaceChildren(
      tabulate("Means by predicted value", HEADS,
        bins.map((bin) => [`${fixed(bin.low, 1)} to ${fixed(bin.high, 1)}`, `${bin.count}`,
          fixed(bin.predicted), fixed(bin.obtained)])),
      note("Obtained is the score / 100. A value is a discounted return: long before the end of a "
        + "perfect trial it is rightly below 1."));
    this.paint();
  }

  paint() {
    const context = sharp(this.canvas);
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const [left, right, top, bottom] = [44, width - 22, 10, height - 34];
    const x = (value) => left + value * (right - left);
    const y = (value) => bottom - value * (bottom - top);
    context.font = "12px system-ui, sans-serif";
    context.strokeStyle = color("--line");
    context.fillStyle = color("--dim");
    for (let tick = 0; tick <= 1; tick += 0.25) {
      line(context, [[left, y(tick)], [right, y(tick)]]);
      line(context, [[x(tick), top], [x(tick), bottom]]);
      write(context, fixed(tick), left - 6, y(tick) + 4, "right");
      write(context, fixed(tick), x(tick), bottom + 15, "center");
    }
    write(context, "predicted", (left + right) / 2, height - 4, "center");
    write(context, "obtained", left + 4, top + 12);
    context.setLineDash([4, 4]);
    line(context, [[x(0), y(0)], [x(1), y(1)]]);
    context.setLineDash([]);
    context.fillStyle = color("--accent");
    context.globalAlpha = 0.35;
    for (const point of this.found.points) dot(context, x(point.predicted), y(point.obtained), 3);
    context.globalAlpha = 1;
    context.strokeStyle = context.fillStyle = color("--warn");
    context.lineWidth = 2;
    line(context, this.found.bins.map((bin) => [x(bin.predicted), y(bin.obtained)]));
    for (const bin of this.found.bins) dot(context, x(bin.predicted), y(bin.obtained), 5);
  }
}
