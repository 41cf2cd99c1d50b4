// What all pages share: switches that are remembered, ages, notes, the help, and the stream of changes. Pages work without any
// of it; a page's own scripts come after this one and use what is declared here.
"use strict";

const AGE_MS = 10000;
const POLL_MS = 3000;
const AGAIN_MS = [1000, 2000, 5000, 15000, 30000];
const HIDDEN_MS = 5000;

const byId = (id) => document.getElementById(id);

function remembered(key, fallback) {
  try {
    return localStorage.getItem(key) ?? fallback;
  } catch {
    return fallback;
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
    return true;
  } catch {
    return false; // private windows may refuse
  }
}

function setUpSwitch(id) {
  const box = byId(id);
  if (!box) return;
  box.checked = remembered(id, "on") === "on";
  box.addEventListener("change", () => remember(id, box.checked ? "on" : "off"));
}

function setOpacity(percent) {
  const value = Math.min(100, Math.max(0, percent));
  document.documentElement.style.setProperty("--heat", String(value / 100));
  remember("opacity", String(value));
  const slider = byId("opacity");
  if (slider) slider.value = value;
}

// What stands in the page's content; called again when that is replaced.
function setUpControls() {
  setUpSwitch("heat");
  setUpSwitch("boxes");
  const slider = byId("opacity");
  if (slider) {
    slider.addEventListener("input", () => setOpacity(Number(slider.value)));
    slider.closest("label").hidden = false;
  }
  setOpacity(Number(remembered("opacity", "80")));
  for (const scripted of document.querySelectorAll(".scripted")) scripted.hidden = false;
  showAges();
}

function inWords(seconds) {
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  const days = Math.floor(seconds / 86400);
  return days === 1 ? "1 day ago" : `${days} days ago`;
}

function showAges() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    time.title = at.toLocaleString();
    if ("age" in time.dataset) time.textContent = inWords((Date.now() - at.getTime()) / 1000);
  }
}

// A note at the edge of the page. One that has a key takes the place of the last with it.
function note(text, { key = null, kind = "", stays = false, action = null } = {}) {
  const notes = byId("notes");
  const old = key && notes.querySelector(`[data-key="${key}"]`);
  if (!text) {
    old?.remove();
    return;
  }
  const box = document.createElement("div");
  box.className = `note ${kind}`;
  if (key) box.dataset.key = key;
  box.append(text);
  if (action) {
    const link = document.createElement(action.href ? "a" : "button");
    link.textContent = action.text;
    if (action.href) link.href = action.href;
    else link.type = "button";
    if (action.run) link.addEventListener("click", action.run);
    box.append(" ", link);
  }
  if (old) old.replaceWith(box);
  else notes.append(box);
  if (!stays) setTimeout(() => box.remove(), 4000);
}

// The key of an event, when it is for the page: not typed into a field, not meant for the browser.
function keyOf(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return null;
  const at = event.target;
  // a dialog that was just closed keeps the focus until the next frame is drawn
  if (at instanceof HTMLElement && (at.isContentEditable || at.closest("textarea, select, dialog[open]"))) return null;
  if (at instanceof HTMLInputElement && !["checkbox", "radio", "button"].includes(at.type)) return null;
  return event.key.length === 1 ? event.key.toLowerCase() : event.key;
}

function press(id) {
  const found = byId(id);
  if (!found) return false;
  found.click();
  return true;
}

function setUpHelp() {
  const [help, keys] = [byId("help"), byId("keys")];
  if (!help || !keys) return;
  help.hidden = false;
  help.addEventListener("click", () => keys.showModal());
  keys.addEventListener("click", (event) => {
    if (event.target === keys) keys.close();
  });
  // at once: what the browser does of itself may come after the next key
  keys.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    keys.close();
  });
}

// Keys that every page has.
document.addEventListener("keydown", (event) => {
  const key = keyOf(event);
  const done =
    (key === "h" && press("heat")) ||
    (key === "b" && press("boxes")) ||
    (key === "?" && press("help")) ||
    ((key === "[" || key === "]") && byId("opacity") && (setOpacity(Number(byId("opacity").value) + (key === "]" ? 10 : -10)), true));
  if (done) event.preventDefault();
});

// Asks the server; an answer other than success is an Error with the server's own words and `status`.
async function ask(url, body) {
  const options = body === undefined
    ? {}
    : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(url, options);
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(problem.detail ?? `the server answers ${answer.status}`), { status: answer.status });
}

async function load(url) {
  const answer = await ask(url);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

// The stream of changes. `again` means: something may have been missed, look yourself. Where the stream cannot be had (too many
// pages, a proxy that holds it back), pages look every few seconds. A page that nobody sees gives its place to others.
const live = (() => {
  const heard = {};
  let source = null;
  let polling = null;
  let failures = 0;
  let timer = null;

  const tell = (name, data) => (heard[name] ?? []).forEach((handler) => handler(data));
  const show = (state) => {
    const dot = byId("live");
    dot.hidden = false;
    dot.className = `live ${state}`;
    dot.textContent = { on: "live", polling: "every few seconds", lost: "no connection" }[state];
  };
  const poll = async () => {
    try {
      await ask("/healthz");
      show("polling");
      tell("again", {});
    } catch {
      show("lost");
    }
  };
  const close = () => {
    source?.close();
    source = null;
    clearTimeout(timer);
  };
  const connect = () => {
    if (source || document.hidden) return;
    const stream = new EventSource("/api/v1/live");
    source = stream;
    stream.addEventListener("hello", () => {
      failures = 0;
      clearInterval(polling);
      polling = null;
      show("on");
      tell("again", {});
    });
    stream.addEventListener("behind", () => tell("again", {}));
    for (const name of ["anomaly", "review", "line"]) {
      stream.addEventListener(name, (event) => tell(name, JSON.parse(event.data)));
    }
    stream.addEventListener("error", () => {
      // the browser's own attempts have no end and no plan: ours slow down and look meanwhile
      close();
      if (failures > 0 && !polling) {
        polling = setInterval(poll, POLL_MS);
        poll();
      } else if (!polling) {
        show("lost");
      }
      timer = setTimeout(connect, AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)]);
      failures += 1;
    });
  };
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(() => { close(); clearInterval(polling); polling = null; }, HIDDEN_MS);
    else connect();
  });
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", (event) => { if (event.persisted) connect(); });

  return {
    on(name, handler) {
      (heard[name] ??= []).push(handler);
      connect();
    },
  };
})();

// A picture that could not be had, because the server was away for a moment, is asked for again.
document.addEventListener("error", (event) => {
  const picture = event.target;
  const name = picture instanceof SVGImageElement ? "href" : picture instanceof HTMLImageElement ? "src" : null;
  const tries = Number(picture.dataset?.tries ?? 0);
  if (!name || tries >= 5) return;
  picture.dataset.tries = tries + 1;
  setTimeout(() => picture.setAttribute(name, picture.getAttribute(name)), 1000 * 2 ** tries);
}, true);

// Runs `work` soon, and not again before it is done and `ms` have passed, however often it is asked for.
function gathered(work, ms) {
  let asked = false;
  let busy = false;
  const run = async () => {
    if (busy) return;
    busy = true;
    while (asked) {
      asked = false;
      try {
        await work();
      } catch (error) {
        console.warn(`cannot refresh: ${error.message}`);
      }
      await new Promise((done) => setTimeout(done, ms));
    }
    busy = false;
  };
  return () => {
    asked = true;
    setTimeout(run, 60);
  };
}

setUpControls();
setUpHelp();
setInterval(showAges, AGE_MS);
