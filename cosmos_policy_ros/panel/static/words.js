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

export const fixed = (value, digits = 2) => (value == null ? DASH : value.toFixed(digits));
export const seconds = (value) => (value == null ? DASH : `${value.toFixed(1)} s`);
export const size = (bytes) => (bytes >= 1e9 ? `${fixed(bytes / 1e9, 1)} GB` : `${fixed(bytes / 1e6, 1)} MB`);
export const yesNo = (value) => (value == null ? DASH : value ? "yes" : "no");
export const verdict = (entry) => (entry.go == null ? DASH : entry.go ? "GO" : "NO-GO");
export const basename = (path) => path.split("/").filter(Boolean).pop() ?? "";
export const linkTo = (id, t) =>
  `#/episodes/${encodeURIComponent(id)}${t == null ? "" : `?t=${t.toFixed(2)}`}`;

/** What a checkpoint is called: the last part of its path, and how its digest begins. */
export const checkpoint = (entry) =>
  [basename(entry.checkpoint), entry.digest.slice(0, 8)].filter(Boolean).join(" ") || DASH;

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
    if (times[middle] <= t + 1e-6) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** A table with a caption for those who cannot see where it stands. */
export function tabulate(caption, heads, rows) {
  return el("table", { class: "ep-small" },
    el("caption", { class: "ep-hidden" }, caption),
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, cell))))));
}

export const field = (label, control) => el("label", { class: "ep-field" }, el("span", {}, label), control);
export const block = (title, ...inside) =>
  el("section", { class: "ep-block" }, el("h3", {}, title), ...inside);
