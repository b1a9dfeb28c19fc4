// What people say of an episode: its labels, its score anew, and that it is not to be used.

import { block, el, field, note, points } from "./words.js";

const KINDS = ["stage", "deduction"];

/** A box that enter ticks: space, which ticks elsewhere, stops the arms on this page. */
function tickBox(attributes) {
  const box = el("input", { type: "checkbox", ...attributes });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // nor does it send the form
    box.click();
  });
  return box;
}

/** All labels: each stays, and the newest score counts. */
function history(labels) {
  const said = (label) => ({
    score: `score ${points(label.points)}, ${label.success ? "success" : "no success"}`,
    stage: `+${points(label.points)} ${label.item}`,
    deduction: `-${points(label.points)} ${label.item}`,
    discard: "discarded",
  })[label.kind];
  const lines = labels.map((label) => {
    const given = [`revision ${label.revision}`, label.operator, label.stamp.replace("T", " ")];
    return el("li", {}, el("strong", {}, said(label)), label.note ? `: ${label.note}` : "",
      el("div", { class: "ep-note" }, given.filter(Boolean).join(", ")));
  });
  const list = lines.length ? el("ol", { class: "ep-list" }, ...lines) : note("None yet.");
  return block("Labels, the newest score counts", list);
}

/** Return the items ("stage touched") that the score which counts was made of. */
function named(labels) {
  const scores = labels.flatMap((label, index) => (label.kind === "score" ? [index] : []));
  const [before, last] = [scores.at(-2) ?? -1, scores.at(-1) ?? 0];
  return new Set(labels.slice(before + 1, last).map((label) => `${label.kind} ${label.item}`));
}

/** The labels, and the forms that score an episode again and discard it. */
export class Judgement {
  /** `send` takes a request's name and arguments, and shows the episode as it is afterwards. */
  constructor(data, send) {
    this.data = data;
    this.send = send;
    this.status = el("p", { role: "status", class: "ep-warn" });
    this.missing = "";
    this.elements = [history(data.labels), this.scoring(), this.discarding()];
  }

  /** Grey what only the recorder can do while it does not answer. */
  heard(state) {
    const alive = state?.nodes.recorder_node === "alive";
    this.missing = alive ? "" : "The recorder does not answer: start it to score or discard.";
    for (const button of this.elements.flatMap((each) => [...each.querySelectorAll("button")])) {
      button.setAttribute("aria-disabled", `${!alive}`);
      button.title = this.missing;
    }
  }

  async ask(name, args) {
    if (this.missing) {
      this.status.textContent = this.missing;
      return;
    }
    this.status.textContent = "Sending…";
    try {
      await this.send(name, args);
    } catch (error) {
      this.status.textContent = error.message;
    }
  }

  scoring() {
    const { rubric, score, success, labels, operator } = this.data;
    const before = named(labels);
    const boxes = KINDS.flatMap((kind) => (rubric?.[`${kind}s`] ?? []).map((item) => {
      const checked = before.has(`${kind} ${item.name}`);
      return { kind, item, control: tickBox({ checked, onchange: tick }) };
    }));
    const ticked = (kind) =>
      boxes.filter((box) => box.kind === kind && box.control.checked).map((box) => box.item);
    const sum = (kind) => ticked(kind).reduce((all, item) => all + item.points, 0);

    const told = boxes.length ? el("p", { role: "status" }) : note("Its task has no rubric.");
    const total = el("input", { type: "number", min: 0, max: 100, step: "any",
      placeholder: "by the boxes", value: before.size ? null : score });
    const done = tickBox({ checked: success === true });
    const remark = el("textarea", { rows: 2 });
    const by = el("input", { type: "text", value: operator, autocomplete: "off" });

    function add() {
      const left = Math.max(0, sum("stage") - sum("deduction"));
      if (boxes.length) told.textContent = `${left} of 100 by the boxes`;
    }
    function tick() {
      total.value = ""; // what was typed in before is another score
      add();
    }
    const submit = (event) => {
      event.preventDefault();
      const [reached, charged] = KINDS.map((kind) => ticked(kind).map((item) => item.name));
      const given = total.value === "" ? {} : { score: Number(total.value) };
      if (given.score == null && !reached.length) {
        this.status.textContent = "Tick the stages that were reached, or give a total: 0 is one.";
        return;
      }
      this.ask("score", { ...given, stages: reached, deductions: charged, success: done.checked,
        note: remark.value, operator: by.value });
    };
    add();
    const label = ({ kind, item, control }) => el("label", { class: "ep-check" }, control,
      `${item.name} (${kind === "stage" ? "+" : "-"}${item.points})`);
    return block("Score again", el("form", { class: "ep-form", onsubmit: submit },
      note("Enter ticks a box: space would stop the arms."),
      ...boxes.map(label), told, field("Total", total),
      el("label", { class: "ep-check" }, done, "the task was done"),
      field("Note", remark), field("Scored by", by),
      el("button", { type: "submit" }, "Write the score"), this.status));
  }

  /** Discarding asks once more, in the page. */
  discarding() {
    if (this.data.discarded) {
      return block("Discarded", el("p", {}, this.data.discard_reason || "No reason was given."));
    }
    const reason = el("input", { type: "text", required: true, autocomplete: "off" });
    const first = el("button", { type: "submit" }, "Discard…");
    const keep = el("button", { type: "button", onclick: () => confirm(false) }, "Keep it");
    const discard = () => this.ask("discard", { reason: reason.value });
    const question = el("div", { class: "ep-confirm", role: "group", "aria-label": "Confirm",
      hidden: true },
    el("p", {}, "It will not be used for training or reports any more. Its files stay until a "
      + "purge."),
    el("button", { type: "button", class: "ep-danger", onclick: discard }, "Discard it"), keep);

    function confirm(asking) {
      question.hidden = !asking;
      first.hidden = asking;
      (asking ? keep : first).focus();
    }
    const submit = (event) => {
      event.preventDefault();
      confirm(true);
    };
    return block("Discard", el("form", { class: "ep-form", onsubmit: submit },
      field("Reason", reason), first, question));
  }
}
