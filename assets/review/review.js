// Adds to pages that work without it: the heatmap switch is remembered, the opacity slider, keys, ages, the list that
// refreshes itself when something arrives, and the lines that refresh themselves every few seconds.
"use strict";

const POLL_MS = 2000;
const AGE_MS = 10000;
const LINES_MS = 5000;

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
  } catch {
    // private windows may refuse: then it is only not remembered
  }
}

function setUpSwitch(id) {
  const box = byId(id);
  if (!box) return;
  box.checked = remembered(id, "on") === "on";
  box.addEventListener("change", () => remember(id, box.checked ? "on" : "off"));
}

function setUpSlider() {
  const slider = byId("opacity");
  if (!slider) return;
  slider.value = remembered("opacity", slider.value);
  const apply = () => {
    for (const overlay of document.querySelectorAll(".heat")) overlay.style.opacity = String(slider.value / 100);
  };
  slider.addEventListener("input", () => {
    apply();
    remember("opacity", slider.value);
  });
  slider.closest("label").hidden = false;
  apply();
}

function setUpKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target instanceof HTMLInputElement && event.target.type === "range") return;
    const press = { h: "heat", H: "heat", b: "boxes", B: "boxes", ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    if (press) byId(press)?.click();
  });
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

// Puts the list as the server has it now in the place of the one on screen; cards that stay keep their elements, so
// that pictures do not flicker.
async function refresh() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok) throw new Error(String(answer.status));
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("list");
  const list = byId("list");
  if (!fresh) return;
  const cards = new Map([...list.querySelectorAll(".card")].map((card) => [card.dataset.id, card]));
  for (const card of fresh.querySelectorAll(".card")) {
    const known = cards.get(card.dataset.id);
    if (known) {
      known.classList.remove("fresh");
      card.replaceWith(known);
    } else {
      card.classList.add("fresh");
    }
  }
  list.replaceChildren(...fresh.childNodes);
  list.dataset.revision = fresh.dataset.revision;
  showAges();
}

function setUpPolling() {
  if (!byId("list")) return;
  const live = byId("live");
  const show = (ok) => {
    live.hidden = false;
    live.classList.toggle("lost", !ok);
    live.textContent = ok ? "live" : "no connection";
  };
  const poll = async () => {
    const list = byId("list");
    if (!document.hidden) {
      try {
        const url = new URL(list.dataset.poll, location.href);
        url.searchParams.set("limit", "1");
        const answer = await fetch(url);
        if (!answer.ok) throw new Error(String(answer.status));
        const { revision } = await answer.json();
        if (String(revision) !== list.dataset.revision) {
          const reading = window.scrollY > 300 || list.contains(document.activeElement);
          if ("newest" in list.dataset && !reading) await refresh();
          else byId("news").hidden = false;
        }
        show(true);
      } catch {
        show(false);
      }
    }
    setTimeout(poll, POLL_MS);
  };
  setTimeout(poll, POLL_MS);
}

// The lines as the server has them now.
function setUpLines() {
  if (!byId("lines")) return;
  const live = byId("live");
  const show = (ok) => {
    live.hidden = false;
    live.classList.toggle("lost", !ok);
    live.textContent = ok ? "live" : "no connection";
  };
  const poll = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
        if (!answer.ok) throw new Error(String(answer.status));
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("lines");
        // a link that has the focus keeps it
        if (fresh && !byId("lines").contains(document.activeElement)) {
          byId("lines").replaceChildren(...fresh.childNodes);
          showAges();
        }
        show(true);
      } catch {
        show(false);
      }
    }
    setTimeout(poll, LINES_MS);
  };
  setTimeout(poll, LINES_MS);
}

setUpSwitch("heat");
setUpSwitch("boxes");
setUpSlider();
setUpKeys();
showAges();
setInterval(showAges, AGE_MS);
setUpPolling();
setUpLines();
