// Elements and words that the views of episodes share.
//
// Texts come from bags that anyone may have written: they are put in as text only.

export const DASH = "–"; // what is not known

/** Make an element: attributes by name, listeners by "on…", then texts and elements inside it. */
export function el(tag, attributes = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...inside.filter((each) => each != null));
  return made;
}

export const note = (words) => el("p", { class: "ep-note" }, words);
export const field = (label, control) =>
  el("label", { class: "ep-field" }, el("span", {}, label), control);
export const block = (title, ...inside) =>
  el("section", { class: "ep-block" }, el("h3", {}, title), ...inside);

/** A table with a caption for those who cannot see where it stands. */
export function tabulate(caption, heads, rows) {
  return el("table", { class: "ep-small" },
    el("caption", { class: "ep-hidden" }, caption),
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, cell))))));
}

/** A button that leads to a moment of the episode. */
export const moment = (t, seek) =>
  el("button", { type: "button", class: "ep-moment", onclick: () => seek(t) }, seconds(t));

export const linkTo = (id, t) =>
  `#/episodes/${encodeURIComponent(id)}${t == null ? "" : `?t=${t.toFixed(2)}`}`;

export const fixed = (value, digits = 2) => (value == null ? DASH : value.toFixed(digits));
export const points = (value) => (value == null ? DASH : `${Number(value.toFixed(2))}`);
export const seconds = (value) => (value == null ? DASH : `${value.toFixed(1)} s`);
export const yesNo = (value) => (value == null ? DASH : value ? "yes" : "no");
export const verdict = (entry) => (entry.go == null ? DASH : entry.go ? "GO" : "NO-GO");
export const begun = (entry) => entry.begun.replace("T", " ") || DASH;

export function size(bytes) {
  const [unit, of] = bytes >= 1e9 ? ["GB", 1e9] : bytes >= 1e6 ? ["MB", 1e6] : ["kB", 1e3];
  return `${fixed(bytes / of, 1)} ${unit}`;
}

/** A length as people say it: "44.0 s", "3 min 12 s", "2 h 5 min". */
export function length(value) {
  if (value == null || value < 60) return seconds(value);
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(value % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** What is special about an episode: its state in a word, unless the sentence has it already. */
export function told(entry) {
  const words = entry.state.split(", ").filter((word) => !entry.sentence.includes(word));
  return [words.join(", "), entry.sentence].filter(Boolean).join(": ");
}

/** What a checkpoint is called: the last part of its path, and how its digest begins. */
export function checkpoint(entry) {
  const name = entry.checkpoint.split("/").filter(Boolean).pop();
  return [name, entry.digest.slice(0, 8)].filter(Boolean).join(" ") || DASH;
}

/** A search in two words: "best of 8"; the settings themselves are one line of YAML. */
export function planning(entry) {
  const found = /candidates: (\d+)/.exec(entry.planning);
  return found ? `best of ${found[1]}` : entry.planning || DASH;
}

/** Return the index of the last of ascending `times` that is at `t` or before; -1 for none. */
export function newest(times, t) {
  let low = 0;
  let high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= t + 1e-6) low = middle + 1; // what JSON rounded counts as there
    else high = middle;
  }
  return low - 1;
}
