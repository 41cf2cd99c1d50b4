// Decisions on their way to the server. One that cannot be sent is kept (over reloads too) and sent again until the server has
// it or refuses it; either is shown.
"use strict";

const OUTBOX = "outbox";
const UNDO = "undo";
const RESEND_MS = [1000, 2000, 5000, 10000, 30000];
const WORDS = { defect: "Defect", "false-alarm": "False alarm", unclear: "Unclear" };
const KEY_OF = { d: "defect", f: "false-alarm", u: "unclear" };

const inMemory = {};

function readList(storage, key) {
  try {
    return JSON.parse(storage.getItem(key) ?? "[]");
  } catch {
    return inMemory[key] ?? [];
  }
}

function writeList(storage, key, list) {
  inMemory[key] = list;
  try {
    storage.setItem(key, JSON.stringify(list));
  } catch {
    // kept as long as the page is open
  }
}

const outbox = {
  read: () => readList(localStorage, OUTBOX),
  add: (entry) => writeList(localStorage, OUTBOX, [...outbox.read(), entry]),
  remove(key) {
    const left = outbox.read().filter((entry) => entry.key !== key);
    const found = left.length < outbox.read().length;
    writeList(localStorage, OUTBOX, left);
    return found;
  },
};

let sending = null;
let failed = 0;
let resend = null;

function showUnsaved(why) {
  const waiting = outbox.read().length;
  const text = waiting === 1 ? "1 decision is not saved yet" : `${waiting} decisions are not saved yet`;
  if (waiting === 0) note(null, { key: "unsaved" });
  else if (why?.status === 401) {
    note(`${text}: you are logged out.`, { key: "unsaved", kind: "bad", stays: true, action: { text: "Log in", href: "/login" } });
  } else note(`${text}. Trying again.`, { key: "unsaved", kind: "bad", stays: true, action: { text: "Now", run: () => flush() } });
}

// An answer that was lost may have been a yes: what holds already is not said twice.
async function holds(entry) {
  const { review } = await (await ask(`/api/v1/anomalies/${entry.id}`)).json();
  const same = (a, b) => (a || null) === (b || null);
  return review !== null && review.decision === entry.body.decision && same(review.defect_type, entry.body.defect_type) &&
    same(review.comment, entry.body.comment);
}

async function sendAll() {
  for (let entry = outbox.read()[0]; entry; entry = outbox.read()[0]) {
    try {
      const again = entry.tried;
      if (!again) {
        const list = outbox.read();
        if (list[0]?.key === entry.key) {
          list[0].tried = true;
          writeList(localStorage, OUTBOX, list);
        }
      }
      if (!again || !(await holds(entry))) await ask(`/api/v1/anomalies/${entry.id}/reviews`, entry.body);
      outbox.remove(entry.key);
      failed = 0;
      showUnsaved();
    } catch (error) {
      const final = error.status >= 400 && error.status < 500 && ![401, 408, 425, 429].includes(error.status);
      if (!final) {
        showUnsaved(error);
        clearTimeout(resend);
        resend = setTimeout(flush, RESEND_MS[Math.min(failed, RESEND_MS.length - 1)]);
        failed += 1;
        return;
      }
      outbox.remove(entry.key);
      note(`The decision was refused: ${error.message}.`, {
        kind: "bad", stays: true, action: { text: "Open it", href: `/anomalies/${entry.id}` },
      });
    }
  }
}

// Sends what waits; pages of one browser take turns.
function flush() {
  const run = () => (navigator.locks ? navigator.locks.request(OUTBOX, sendAll) : sendAll());
  sending = (sending ?? Promise.resolve()).then(run, run);
  return sending;
}

// Records a decision; it is on its way when this returns. `url` is where undo leads back to.
function decide(id, body, url) {
  const key = `${Date.now()}-${Math.random()}`;
  outbox.add({ key, id, body, tried: false });
  writeList(sessionStorage, UNDO, [...readList(sessionStorage, UNDO), { key, id, url }].slice(-100));
  return flush();
}

// Takes this window's last decision back; gives what it was of, or null.
async function undoLast() {
  const stack = readList(sessionStorage, UNDO);
  const last = stack.at(-1);
  if (!last) return null;
  if (outbox.read().some((entry) => entry.key === last.key && !entry.tried)) outbox.remove(last.key);
  else {
    await flush();
    try {
      if (outbox.read().some((entry) => entry.key === last.key)) throw new Error("no connection");
      await ask(`/api/v1/anomalies/${last.id}/reviews/undo`, {});
    } catch (error) {
      if (error.status !== 409) {
        note(`Not taken back: ${error.message}. Press Z again.`, { key: "undo", kind: "bad" });
        return null;
      }
    }
  }
  writeList(sessionStorage, UNDO, stack.slice(0, -1));
  return last;
}

function badgeOf(decision, type) {
  const badge = document.createElement("span");
  badge.className = `decision ${decision}`;
  badge.textContent = type || WORDS[decision];
  return badge;
}

// What a key decides, where the site's own list of defect types is `types`.
function decisionOf(key, types) {
  if (Object.hasOwn(KEY_OF, key)) return { decision: KEY_OF[key] };
  if (/^[1-9]$/.test(key) && types[Number(key) - 1]) return { decision: "defect", defect_type: types[Number(key) - 1] };
  return null;
}

// What a button of a form decides.
function decisionOfButton(button) {
  return button.name === "defect_type" ? { decision: "defect", defect_type: button.value } : { decision: button.value };
}

if (outbox.read().length > 0) flush();
window.addEventListener("online", () => flush());
