// Why the arms did what they did: decisions, what the safety gate said of them, stages reached.

import { block, el, fixed, length, moment, newest, note, DASH } from "./words.js";

/** The decision behind the moment, with every candidate that it chose from. */
export class Decisions {
  constructor(data, seek) {
    // A decision counts from when it was judged: until then the arms do what was decided before.
    const judged = new Map(data.gate.map((result) => [result.chunk, result.t]));
    this.all = data.decisions.map((each) => ({ ...each, at: judged.get(each.chunk) ?? each.t }));
    this.obtained = data.score == null ? null : data.score / 100;
    this.index = null;
    this.title = el("h3");
    this.body = el("div");
    const jump = (step) => this.all[this.index + step] && seek(this.all[this.index + step].at);
    const button = (label, sign, step) =>
      el("button", { type: "button", "aria-label": label, onclick: () => jump(step) }, sign);
    this.element = el("section", { class: "ep-block" },
      el("div", { class: "ep-line" }, this.title,
        button("Decision before", "◀", -1), button("Next decision", "▶", 1)),
      this.body);
  }

  moveTo(t) {
    const index = Math.max(0, newest(this.all.map((each) => each.at), t));
    if (index === this.index) return;
    this.index = index;
    const decision = this.all[index];
    const count = this.all.length;
    this.title.textContent = decision ? `Decision ${index + 1} of ${count}` : "Decisions";
    this.body.replaceChildren(...(decision ? this.told(decision) : [note("None was recorded.")]));
  }

  told(decision) {
    const bars = decision.candidates.map((each, i) => bar(each, i === decision.chosen));
    const facts = [
      `${decision.finished} of ${decision.requested} candidates in time`,
      decision.spread == null ? null : `spread ${fixed(decision.spread, 3)}`,
      decision.denoising_steps ? `${decision.denoising_steps} denoising steps` : null,
      decision.evaluations ? `${decision.evaluations} evaluations of the networks` : null,
    ].filter(Boolean).join(", ");
    const took = decision.phases.map(([name, s]) => `${name} ${Math.round(1000 * s)} ms`);
    return [
      el("p", {}, decision.reason),
      el("ol", { class: "ep-bars" }, ...bars),
      el("p", {}, `Predicted ${fixed(decision.value)}, obtained ${fixed(this.obtained)}.`),
      note(`${facts}; decided on what was seen at ${fixed(decision.t)} s. ${took.join(", ")}`),
    ];
  }
}

/** A candidate's value as a bar from 0 to 1, with a tick for each value it was made of. */
function bar(candidate, chosen) {
  const placed = (kind, side, value) => {
    const made = el("span", { class: kind });
    made.style[side] = `${100 * Math.min(Math.max(value ?? 0, 0), 1)}%`;
    return made;
  };
  const values = candidate.values.filter((value) => value != null);
  const ticks = values.length > 1 ? values.map((value) => placed("ep-tick", "left", value)) : [];
  const value = candidate.value == null ? "no value" : fixed(candidate.value, 3);
  const spread = candidate.spread == null ? "" : ` ± ${fixed(candidate.spread, 3)}`;
  const dropped = candidate.dropped ? `, left out by ${candidate.dropped}` : "";
  const told = candidate.finished ? value + spread + dropped : "not in time";
  return el("li", { class: chosen ? "ep-chosen" : null },
    el("span", { class: "ep-seed" }, `seed ${candidate.seed}`),
    el("span", { class: "ep-track" }, placed("ep-fill", "width", candidate.value), ...ticks),
    el("span", { class: "ep-value" }, told + (chosen ? " chosen" : "")));
}

/** What the safety gate said: refusals with joint, value, limit and remedy. */
export function verdicts(data, seek) {
  if (!data.gate.length) return [];
  const refused = data.gate.filter((result) => !result.accepted);
  const clamped = data.gate.reduce((sum, result) => sum + result.clamped, 0);
  const limits = (result) => [
    result.joint,
    result.step < 0 ? "" : `row ${result.step}`,
    `${fixed(result.value, 3)} where ${fixed(result.limit, 3)} is allowed`,
  ].filter(Boolean).join(", ");
  const accepted = `${data.gate.length - refused.length} of ${data.gate.length} chunks accepted`;
  const pulled = clamped ? `, ${clamped} values pulled back onto a limit` : "";
  return [block("Safety gate",
    el("p", {}, `${accepted}${pulled}.`),
    el("ul", { class: "ep-list" }, ...refused.map((result) => el("li", {},
      moment(result.t, seek), el("strong", { class: "ep-bad" }, ` refused: ${result.rule}. `),
      `${limits(result)}. ${result.message}`))))];
}

/** The stages that the simulated rig's judge saw reached, and when. */
export function stages(data, seek) {
  if (!data.stages?.names.length) return [];
  const lines = data.stages.names.map((name, i) => {
    const reached = data.stages.reached[i];
    return el("li", {}, reached ? moment(reached.t, seek) : DASH, ` ${name}`);
  });
  return [block("Stages by the simulated rig's judge", el("ol", { class: "ep-list" }, ...lines))];
}

/** What else is known of an episode, and how much of a long one is not shown. */
export function facts(data, words) {
  const known = data.metadata;
  const left = Object.entries(data.left_out).map(([name, count]) => `${count} more ${name}`);
  const all = {
    ...words,
    length: length(data.seconds),
    "ended by": data.outcome,
    prompt: data.prompt,
    rig: known.rig,
    engine: known.engine,
    checkpoint: known.checkpoint,
    digest: known.checkpoint_digest,
    planning: data.planning,
    operator: known.operator_name,
    seed: known.seed,
    version: known.package_version,
    "NO-GO since": data.reasons.join("; "),
    recovered: data.recovered,
    import: data.source_notes,
    "not shown": left.join(", "),
  };
  const told = Object.entries(all).filter(([, said]) => said && said !== DASH);
  return block("About it", el("dl", { class: "ep-facts" },
    ...told.flatMap(([name, said]) => [el("dt", {}, name), el("dd", {}, said)])));
}
