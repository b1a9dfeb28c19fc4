// The one socket to the panel: the state as it comes, requests and their answers, and images.

const SILENCE = 1500; // ms without a word after which the panel is lost; it speaks twice a second
const RETRY = 1000; // ms
const WRONG_SECRET = 4401; // the code that closes a socket whose token is wrong

// The token comes behind the address' #, which never leaves the browser, and is kept for this
// origin alone so that other tabs and links work too.
// Returns whether there was one.
export function takeToken() {
  const given = /[#&]token=([^&]+)/.exec(location.hash);
  if (!given) return false;
  localStorage.setItem("token", given[1]);
  history.replaceState(null, "", `${location.pathname}#/`);
  return true;
}

export class Connection {
  // heard(state), images(header, blobs), lost(sentence), refused(): what the page is told.
  constructor({ heard, images, lost, refused }) {
    Object.assign(this, { heard, images, lost, refused });
    this.state = null;
    this.listeners = new Set();
    this.waiting = new Map();
    this.number = 0;
    this.cameras = false;
    this.last = 0;
    setInterval(() => this.watch(), 250);
    this.open();
  }

  onState(listener) {
    this.listeners.add(listener);
  }

  open() {
    this.drop();
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/socket`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(JSON.stringify({ hello: localStorage.getItem("token") ?? "" }));
    socket.onmessage = (event) => this.take(event.data);
    socket.onclose = (event) => this.closed(event);
    this.socket = socket;
  }

  // Leave the socket there is, if there is one, without a word.
  drop() {
    clearTimeout(this.retry);
    if (!this.socket) return;
    this.socket.onclose = this.socket.onmessage = null;
    this.socket.close();
  }

  get alive() {
    return this.state !== null && performance.now() - this.last < SILENCE;
  }

  closed(event) {
    for (const { reject } of this.waiting.values()) reject(new Error("the panel has gone; the answer is not known"));
    this.waiting.clear();
    this.state = null;
    if (event.code === WRONG_SECRET) {
      this.refused();
      return;
    }
    this.lost(event.reason || "The panel does not answer");
    this.retry = setTimeout(() => this.open(), RETRY);
  }

  // A network that is lost closes no socket.
  watch() {
    if (this.state !== null && !this.alive) {
      this.drop();
      this.closed({ code: 0, reason: "The panel is silent" });
    }
  }

  take(data) {
    this.last = performance.now();
    if (typeof data !== "string") {
      this.takeImages(data);
      return;
    }
    const said = JSON.parse(data);
    if ("id" in said) {
      const asked = this.waiting.get(said.id);
      this.waiting.delete(said.id);
      if (said.ok) asked?.resolve(said.result);
      else asked?.reject(new Error(said.message));
    } else if (said.state) {
      const first = this.state === null;
      this.state = said.state;
      if (first) this.tell({ cameras: this.cameras });
      this.heard(said.state);
      for (const listener of this.listeners) listener(said.state);
    }
  }

  takeImages(data) {
    const length = new DataView(data).getUint32(0);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    let at = 4 + length;
    const images = header.sizes.map((size) => {
      at += size;
      return new Blob([new Uint8Array(data, at - size, size)], { type: "image/jpeg" });
    });
    if ("id" in header) {
      this.waiting.get(header.id)?.resolve({ header, images });
      this.waiting.delete(header.id);
      return;
    }
    // The next set but one is sent when this one is on the screen.
    this.images(header, images).finally(() => this.tell({ shown: header.set }));
  }

  showCameras(on) {
    this.cameras = on;
    this.tell({ cameras: on });
  }

  tell(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  // Resolves to the answer, {header, images: Blob[]} of one with images; rejects with a sentence.
  ask(name, args = {}) {
    if (!this.alive) return Promise.reject(new Error("the panel does not answer"));
    const id = ++this.number;
    this.tell({ id, do: name, ...args });
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }
}
