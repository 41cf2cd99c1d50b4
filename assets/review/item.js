// One anomaly: decisions by one key, and the next one at once, because its page and pictures were fetched while one looked.
"use strict";

const BLINK_MS = 450;
const STEPS = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] };

const item = () => byId("item");
const judged = new Set();
let view = null; // zoom of the frame that is shown
let ahead = null; // the next page: { url, page: Promise<Document> }
let blinking = null;

const idOf = (url) => new URL(url, location.href).pathname.split("/").pop();

// --- the next page

function preload(page) {
  for (const picture of page.querySelectorAll("#stage image, .pair image")) new Image().src = picture.getAttribute("href");
  return page;
}

function fetchAhead() {
  const url = item().dataset.next;
  ahead = null;
  if (!url || judged.has(idOf(url))) return;
  const page = load(url).then(preload);
  page.catch(() => {}); // tried again when it is needed
  ahead = { url, page };
}

function put(page, url, push) {
  byId("content").replaceChildren(...page.getElementById("content").childNodes);
  document.title = page.title;
  if (push) history.pushState(null, "", url);
  setUpItem();
  window.scrollTo({ top: 0 });
}

async function go(url, push = true) {
  try {
    const page = await (ahead?.url === url ? ahead.page : load(url));
    put(page, url, push);
  } catch {
    location.assign(url); // the browser says what is wrong
  }
}

async function goNext() {
  let url = item().dataset.next ?? null;
  if (url && judged.has(idOf(url))) {
    // the listing has moved on since this page was made
    await flush();
    try {
      url = (await load(location.href)).getElementById("item").dataset.next ?? null;
    } catch {
      url = null;
    }
    if (url && judged.has(idOf(url))) url = null;
  }
  if (url) return go(url);
  await Promise.race([flush(), new Promise((done) => setTimeout(done, 3000))]);
  location.assign(item().dataset.queue);
}

// --- decisions

let deciding = false;

async function judge(body) {
  if (deciding) return;
  deciding = true;
  const comment = byId("comment")?.value.trim();
  const { id } = item().dataset;
  for (const button of document.querySelectorAll("#verdict button")) {
    const chosen = button.value === body.decision || button.value === body.defect_type;
    button.setAttribute("aria-pressed", String(chosen));
  }
  judged.add(id);
  decide(id, comment ? { ...body, comment } : body, location.href);
  note(`Part ${document.querySelector(".title h1").firstChild.textContent.replace(/^Part\s*/, "").trim()}: ${body.defect_type ?? WORDS[body.decision]}`, {
    key: "done", action: { text: "Undo (Z)", run: undo },
  });
  try {
    await goNext();
  } finally {
    deciding = false;
  }
}

async function undo() {
  const last = await undoLast();
  if (last) {
    judged.delete(last.id);
    note("Taken back", { key: "done" });
    ahead = null;
    // from the queue the way back is the list; the item itself is meant
    return go(last.url.includes(last.id) ? last.url : `/anomalies/${last.id}${location.search}`);
  }
  const form = byId("undo");
  if (!form) return;
  try {
    await ask(`/api/v1/anomalies/${item().dataset.id}/reviews/undo`, {});
    judged.delete(item().dataset.id);
    ahead = null;
    await go(location.href, false);
  } catch (error) {
    note(`Not taken back: ${error.message}.`, { kind: "bad" });
  }
}

// --- the normal look in its place

function stopBlinking() {
  clearInterval(blinking);
  blinking = null;
}

function blink() {
  const compare = byId("compare");
  if (!compare) return;
  if (blinking) {
    stopBlinking();
    compare.checked = false;
    return;
  }
  blinking = setInterval(() => { compare.checked = !compare.checked; }, BLINK_MS);
}

// --- setting up, for each item anew

function setUpItem() {
  stopBlinking();
  setUpControls();
  view = setUpZoom(byId("stage"));
  byId("compare")?.addEventListener("change", stopBlinking);
  byId("verdict")?.addEventListener("submit", (event) => {
    if (!event.submitter) return;
    event.preventDefault();
    judge(decisionOfButton(event.submitter));
  });
  byId("undo")?.addEventListener("submit", (event) => {
    event.preventDefault();
    undo();
  });
  byId("comment")?.addEventListener("keydown", (event) => {
    if (event.key === "Escape" || (event.key === "Enter" && event.ctrlKey)) event.target.blur();
  });
  fetchAhead();
}

document.addEventListener("keydown", (event) => {
  const key = keyOf(event);
  if (!key) return;
  const body = "judge" in item().dataset ? decisionOf(key, JSON.parse(item().dataset.types)) : null;
  if (event.shiftKey && STEPS[key]) view.pan(...STEPS[key]);
  else if (body) judge(body);
  else if (key === "z" || key === "Backspace") undo();
  else if (key === "c" && byId("comment")) byId("comment").focus();
  else if (key === "+" || key === "=") view.zoom(1.5);
  else if (key === "-") view.zoom(1 / 1.5);
  else if (key === "0") view.fit();
  else if (key === "p") view.part();
  else if (key === "n" && event.shiftKey) blink();
  else if (key === "n") press("compare");
  else if (key === "l") press("queue");
  else if ((key === "ArrowLeft" || key === "k") && byId("prev")) go(byId("prev").href);
  else if ((key === "ArrowRight" || key === "j") && byId("next")) go(byId("next").href);
  else return;
  event.preventDefault();
});

window.addEventListener("popstate", () => {
  ahead = null;
  go(location.href, false);
});

// What others decide meanwhile.
live.on("review", async ({ id }) => {
  if (id !== item().dataset.id || judged.has(id)) return;
  try {
    const page = await load(location.href);
    if (id !== item().dataset.id || page.getElementById("item")?.dataset.id !== id) return;
    const comment = byId("comment")?.value;
    if (byId("decide").contains(document.activeElement)) return;
    for (const part of [".title", "#decide"]) document.querySelector(part).replaceWith(page.querySelector(part));
    if (comment) byId("comment").value = comment;
    setUpItem();
  } catch (error) {
    console.warn(`cannot refresh: ${error.message}`);
  }
});

setUpItem();
