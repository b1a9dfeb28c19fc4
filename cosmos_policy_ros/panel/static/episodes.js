// The researcher's view: all episodes in a table, and the way to each of them.

import { EpisodePage } from "./episode_page.js";
import { Calibration } from "./plots.js";
import { begun, checkpoint, el, field, length, linkTo, planning, points, size, told, verdict,
  yesNo, DASH } from "./words.js";

const ROWS = 200; // of the table at once; more are behind a button, which keeps typing quick

// ---------------------------------------------------------------- the table of all episodes

const COLUMNS = [
  { head: "Episode", key: (e) => e.title },
  { head: "Begun", key: (e) => e.begun, cell: begun },
  { head: "Task", key: (e) => e.task },
  { head: "Score", key: (e) => e.score, cell: (e) => points(e.score), right: true },
  { head: "Success", key: (e) => e.success, cell: (e) => yesNo(e.success) },
  { head: "Verdict", key: verdict },
  { head: "Ended by", key: (e) => e.outcome },
  { head: "Length", key: (e) => e.seconds, cell: (e) => length(e.seconds), right: true },
  { head: "Size", key: (e) => e.bytes, cell: (e) => size(e.bytes), right: true },
  { head: "Checkpoint", key: checkpoint },
  { head: "Planning", key: planning },
  { head: "Operator", key: (e) => e.operator },
];

const SCORED = {
  scored: (entry) => entry.score != null,
  "not scored": (entry) => entry.score == null,
  success: (entry) => entry.success === true,
  "no success": (entry) => entry.success === false,
};

class EpisodeTable {
  constructor(connection) {
    this.connection = connection;
    this.entries = [];
    this.sorted = { column: COLUMNS[1], up: false };
    this.most = ROWS;
    const changed = () => this.draw();
    this.filters = {
      text: el("input", { type: "search", placeholder: "any word", oninput: changed }),
      task: el("select", { onchange: changed }),
      verdict: el("select", { onchange: changed }),
      scored: el("select", { onchange: changed }),
      checkpoint: el("select", { onchange: changed }),
      planning: el("select", { onchange: changed }),
    };
    this.count = el("p", { class: "ep-count", role: "status" });
    this.heads = el("tr");
    this.body = el("tbody", { onkeydown: (event) => this.walk(event) });
    this.more = el("button", { type: "button", onclick: () => this.draw(this.most + ROWS) });
    this.calibration = new Calibration(connection);
    this.element = el("div", { class: "ep-all" },
      el("form", { class: "ep-filters", onsubmit: (event) => event.preventDefault() },
        field("Search", this.filters.text), field("Task", this.filters.task),
        field("Verdict", this.filters.verdict), field("Score", this.filters.scored),
        field("Checkpoint", this.filters.checkpoint), field("Planning", this.filters.planning),
        el("button", { type: "button", onclick: () => this.refresh() }, "Look again")),
      this.calibration.element, this.count,
      el("div", { class: "ep-scroll" },
        el("table", { class: "ep-table" },
          el("caption", { class: "ep-hidden" }, "All episodes; the heads sort"),
          el("thead", {}, this.heads), this.body)),
      this.more);
  }

  /** Ask until every episode was read: the server does some of them at a time, newest first. */
  async refresh() {
    if (this.asking) return;
    this.asking = true;
    try {
      let left = 0;
      do {
        this.count.textContent = `Looking through the folder… ${left ? `${left} are left.` : ""}`;
        ({ episodes: this.entries, left } = await this.connection.ask("episodes"));
        this.offer();
        this.draw();
      } while (left && this.element.isConnected);
    } catch (error) {
      this.count.textContent = error.message;
    }
    this.asking = false;
    this.calibration.refresh();
  }

  /** Fill the filters with what there is, and keep what was chosen. */
  offer() {
    const fill = (select, words) => {
      const chosen = select.value;
      select.replaceChildren(el("option", { value: "" }, "all"),
        ...words.map((word) => el("option", { value: word }, word)));
      select.value = words.includes(chosen) ? chosen : "";
    };
    const distinct = (key) => [...new Set(this.entries.map(key))].filter(Boolean).sort();
    fill(this.filters.task, distinct((entry) => entry.task));
    fill(this.filters.verdict, ["GO", "NO-GO"]);
    fill(this.filters.scored, Object.keys(SCORED));
    fill(this.filters.checkpoint, distinct(checkpoint));
    fill(this.filters.planning, distinct(planning));
  }

  matches(entry) {
    const wanted = Object.fromEntries(
      Object.entries(this.filters).map(([name, control]) => [name, control.value]));
    const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
    const all = Object.values(entry).flat().join(" ").toLowerCase();
    return words.every((word) => all.includes(word))
      && (!wanted.task || wanted.task === entry.task)
      && (!wanted.verdict || wanted.verdict === verdict(entry))
      && (!wanted.scored || SCORED[wanted.scored](entry))
      && (!wanted.checkpoint || wanted.checkpoint === checkpoint(entry))
      && (!wanted.planning || wanted.planning === planning(entry));
  }

  draw(most = ROWS) {
    this.most = most;
    const { column, up } = this.sorted;
    const found = this.entries.filter((entry) => this.matches(entry));
    if (!up) found.reverse(); // those alike stay in this order: they came oldest first
    // What is not known comes last, whichever way round.
    found.sort((a, b) => {
      const [x, y] = [column.key(a), column.key(b)];
      const unknown = (value) => value == null || value === "" || value === DASH;
      if (unknown(x) || unknown(y)) return unknown(x) - unknown(y);
      const order = typeof x === "string" ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    this.heads.replaceChildren(...COLUMNS.map((each) => this.head(each)));
    this.body.replaceChildren(...found.slice(0, most).flatMap((entry) => this.rows(entry)));
    const all = this.entries.length;
    this.count.textContent = all ? `${found.length} of ${all} episodes` : "No episode yet.";
    this.more.hidden = found.length <= most;
    this.more.textContent = `Show more of the other ${found.length - most}`;
  }

  head(column) {
    const mine = column === this.sorted.column;
    const sort = () => {
      this.sorted = { column, up: mine ? !this.sorted.up : true };
      this.draw();
      this.heads.children[COLUMNS.indexOf(column)].firstChild.focus();
    };
    const arrow = mine ? (this.sorted.up ? " ▲" : " ▼") : "";
    const order = mine ? (this.sorted.up ? "ascending" : "descending") : "none";
    return el("th", { scope: "col", "aria-sort": order, class: column.right ? "ep-right" : null },
      el("button", { type: "button", onclick: sort }, column.head + arrow));
  }

  /** An episode's line, and one below it for what is special about it. */
  rows(entry) {
    const cells = COLUMNS.map((column, index) => {
      const words = `${(column.cell ?? column.key)(entry) || DASH}`;
      const kind = { GO: "ep-good", "NO-GO": "ep-bad" }[words];
      return el("td", { class: column.right ? "ep-right" : kind },
        index ? words : el("a", { href: linkTo(entry.id) }, words));
    });
    const open = (event) => {
      if (!event.target.closest("a")) location.hash = linkTo(entry.id);
    };
    const kind = entry.readable ? "ep-row" : "ep-row ep-dim";
    const line = el("tr", { class: kind, onclick: open }, ...cells);
    line.title = entry.reasons.join("\n"); // of a NO-GO
    const words = told(entry);
    if (!words) return [line];
    return [line, el("tr", { class: "ep-told" }, el("td", { colspan: COLUMNS.length }, words))];
  }

  /** Up and down go from episode to episode; enter opens one, as it does any link. */
  walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const links = [...this.body.querySelectorAll("a")];
    const next = links[links.indexOf(document.activeElement) + step];
    if (next) next.focus();
    event.preventDefault();
  }
}

// ---------------------------------------------------------------- the view

/** Return what an address says, also a mistyped one. */
function decoded(words) {
  try {
    return decodeURIComponent(words);
  } catch {
    return words;
  }
}

/**
 * Make the researcher's view inside an empty section.
 *
 * `connection` has ask(name, args), state (null until the panel answers) and
 * onState(fn). show() takes what the address says: "/episodes" or "/episodes/<id>", and its query
 * with the moment "t" in seconds.
 */
export function createEpisodesView(root, connection) {
  const table = new EpisodeTable(connection);
  const page = new EpisodePage(connection);
  const waiting = el("p", { role: "status" }, "Waiting for the panel…");
  let wanted = null; // what to show as soon as the panel answers
  let phase = null; // the recorder's
  root.classList.add("ep-view");

  function show(path = "", query = "") {
    root.hidden = false;
    wanted = connection.state === null ? [path, query] : null;
    const id = decoded(path.replace(/^\/?(episodes)?\/?/, ""));
    if (!id) page.close();
    if (wanted) {
      root.replaceChildren(waiting);
    } else if (id) {
      root.replaceChildren(page.element);
      page.open(id, Number.parseFloat(new URLSearchParams(query).get("t")));
    } else {
      root.replaceChildren(table.element);
      table.refresh();
    }
  }

  function hide() {
    page.close();
    wanted = null;
    root.hidden = true;
  }

  connection.onState((state) => {
    const before = phase;
    phase = state.recorder?.phase ?? null;
    if (wanted) show(...wanted);
    // An episode that has just ended belongs into the table.
    else if (before === "recording" && phase !== before && table.element.isConnected) table.refresh();
  });
  return { show, hide };
}
