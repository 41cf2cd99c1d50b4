// The queue: keys, decisions in place, what arrives while one looks, and more cards as one goes on.
"use strict";

const list = byId("list");
const REFRESH_MS = 700;
const AHEAD = "900px";

const types = JSON.parse(list.dataset.types);
const cards = () => [...list.querySelectorAll(".card")];
const linkOf = (card) => card.querySelector("a.picture");
const focused = () => document.activeElement?.closest?.(".card") ?? null;
const cardOf = (id) => document.getElementById(`a-${id}`);

// --- decisions in place

function mark(card, decision, type) {
  if (decision) card.dataset.decision = decision;
  else delete card.dataset.decision;
  card.querySelector(".verdicts-given").replaceChildren(...(decision ? [badgeOf(decision, type)] : []));
  for (const button of card.querySelectorAll(".judge button")) {
    if (button.value === decision) button.setAttribute("aria-pressed", "true");
    else button.removeAttribute("aria-pressed");
  }
}

const judgedHere = new Set();

function judge(card, body) {
  mark(card, body.decision, body.defect_type);
  judgedHere.add(card.dataset.id);
  decide(card.dataset.id, body, location.href);
  const all = cards();
  const after = all.slice(all.indexOf(card) + 1);
  const next = after.find((c) => !c.dataset.decision) ?? after[0];
  if (next) show(next);
  if (!next || all.length - all.indexOf(next) < 8) more();
}

async function undo() {
  const last = await undoLast();
  if (!last) return;
  judgedHere.delete(last.id);
  const card = cardOf(last.id);
  if (!card) {
    location.assign(last.url.includes(last.id) ? last.url : `/anomalies/${last.id}`);
    return;
  }
  mark(card, null);
  show(card);
  refresh();
}

list.addEventListener("submit", (event) => {
  const card = event.target.closest(".card");
  if (!card || !event.submitter) return;
  event.preventDefault();
  judge(card, decisionOfButton(event.submitter));
});

// --- moving

function show(card) {
  linkOf(card).focus({ preventScroll: true });
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  card.scrollIntoView({ block: "nearest", behavior: still ? "auto" : "smooth" });
}

function move(key) {
  const all = cards();
  if (all.length === 0) return;
  const at = all.indexOf(focused());
  if (at < 0) {
    show(all[0]);
    return;
  }
  const columns = Math.max(1, all.filter((card) => card.offsetTop === all[0].offsetTop).length);
  const step = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[key];
  const to = all[Math.min(all.length - 1, Math.max(0, at + step))];
  if (to) show(to);
  if (at + step >= all.length - columns) more();
}

document.addEventListener("keydown", (event) => {
  const key = keyOf(event);
  if (!key) return;
  const card = focused();
  const body = "judge" in list.dataset && card ? decisionOf(key, types) : null;
  if (body) judge(card, body);
  else if (["j", "k", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].includes(key)) {
    if (key.startsWith("Arrow") && (!card || event.shiftKey)) return;
    move(key);
  } else if (key === "z" && "judge" in list.dataset) undo();
  else if (key === "n" && !byId("news").hidden) byId("news").click();
  else if (key === "/") {
    byId("filters").open = true;
    byId("filters").querySelector("select, input").focus();
  } else return;
  event.preventDefault();
});

// --- what arrives

// The fresh list into the one on screen: cards that are there stay, so that nothing flickers and what was decided can be undone.
function merge(fresh) {
  for (const part of [".states", ".filters > nav", ".sorts"]) {
    const [now, then] = [fresh.querySelectorAll(part), list.querySelectorAll(part)];
    now.forEach((element, i) => {
      if (then[i] && !then[i].contains(document.activeElement) && then[i].outerHTML !== element.outerHTML) then[i].replaceWith(element);
    });
  }
  const holder = byId("cards");
  const cardsNow = [...fresh.querySelectorAll(".card")];
  if (!holder) {
    if (cardsNow.length > 0) {
      list.querySelector(".empty")?.replaceWith(fresh.querySelector("#cards"));
      list.querySelectorAll(".card").forEach((card) => card.classList.add("fresh"));
    }
    return;
  }
  let before = holder.firstElementChild;
  for (const card of cardsNow.reverse()) {
    const known = cardOf(card.dataset.id);
    if (known) {
      before = known;
      if (!judgedHere.has(card.dataset.id) && known.dataset.decision !== card.dataset.decision) {
        mark(known, card.dataset.decision, card.querySelector(".decision")?.textContent);
      }
    } else {
      card.classList.add("fresh");
      holder.insertBefore(card, before);
      before = card;
    }
  }
}

let forced = false;

const refresh = gathered(async () => {
  const fresh = (await load(list.dataset.view)).getElementById("list");
  const news = byId("news");
  list.dataset.revision = fresh.dataset.revision;
  const unknown = [...fresh.querySelectorAll(".card")].filter((card) => !cardOf(card.dataset.id)).length;
  const working = window.scrollY > 200 || focused() !== null;
  if (!forced && unknown > 0 && (!("first" in list.dataset) || working)) {
    news.textContent = `${unknown === 1 ? "1 new" : `${unknown} new`}: show (N)`;
    news.hidden = false;
    for (const card of fresh.querySelectorAll(".card")) if (!cardOf(card.dataset.id)) card.remove();
  } else if ("first" in list.dataset) {
    news.hidden = true;
  }
  merge(fresh);
  if (forced) {
    forced = false;
    if (cards()[0]) show(cards()[0]);
    window.scrollTo({ top: 0 });
  }
  showAges();
}, REFRESH_MS);

byId("news").addEventListener("click", (event) => {
  if (!("first" in list.dataset)) return;
  event.preventDefault();
  forced = true;
  refresh();
});

live.on("anomaly", refresh);
live.on("review", async ({ id }) => {
  const card = cardOf(id);
  if (card && !judgedHere.has(id)) {
    try {
      const { review } = await (await ask(`/api/v1/anomalies/${id}`)).json();
      if (!judgedHere.has(id)) mark(card, review?.decision, review?.defect_type);
    } catch {
      // it may be gone; the list says so when it is loaded anew
    }
  }
  refresh();
});
live.on("again", async () => {
  const { revision } = await (await ask("/api/v1/anomalies?limit=1")).json().catch(() => ({}));
  if (revision !== undefined && String(revision) !== list.dataset.revision) refresh();
});

// --- more cards

let loading = false;

async function more() {
  const link = byId("more");
  if (!link || loading) return;
  loading = true;
  try {
    const next = await load(link.href);
    for (const card of next.querySelectorAll(".card")) if (!cardOf(card.dataset.id)) byId("cards").append(card);
    const further = next.getElementById("more");
    if (further) link.href = further.href;
    else link.remove();
    showAges();
  } catch (error) {
    note(`More cannot be loaded: ${error.message}.`, { key: "more", kind: "bad" });
  }
  loading = false;
}

// Not before one looks around: what nobody looks at need not be loaded.
function watchTheEnd() {
  const link = byId("more");
  if (!link) return;
  new IntersectionObserver((seen) => {
    if (seen.some((s) => s.isIntersecting)) more();
  }, { rootMargin: AHEAD }).observe(link);
}
for (const name of ["scroll", "wheel", "touchmove"]) window.addEventListener(name, watchTheEnd, { once: true, passive: true });

// --- filters

// Times are chosen in local time where the browser can, and sent as the server wants them.
for (const field of list.querySelectorAll(".filter-form input[name=since], .filter-form input[name=until]")) {
  const picker = document.createElement("input");
  picker.type = "datetime-local";
  picker.setAttribute("aria-label", field.previousElementSibling.textContent);
  const at = new Date(field.value);
  if (field.value && !Number.isNaN(at.getTime())) {
    picker.value = new Date(at.getTime() - at.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
  }
  field.type = "hidden";
  field.after(picker);
  picker.addEventListener("change", () => {
    field.value = picker.value ? new Date(picker.value).toISOString() : "";
  });
}

// Who comes back from an item goes on where it is.
const back = location.hash.startsWith("#a-") ? byId(location.hash.slice(1)) : null;
if (back) show(back);
