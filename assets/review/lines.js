// The lines as the server has them now, whenever one of them reports.
"use strict";

const LINES_MS = 2000;
const SILENT_MS = 10000;

const refreshLines = gathered(async () => {
  const fresh = (await load(location.href)).getElementById("lines");
  const lines = byId("lines");
  const on = lines.contains(document.activeElement) ? document.activeElement.closest("[data-line]")?.dataset.line : null;
  // a live picture goes on as it is
  for (const picture of fresh.querySelectorAll("[data-watch]")) {
    const shown = [...lines.querySelectorAll("[data-watch]")].find((old) => old.dataset.watch === picture.dataset.watch);
    if (shown) picture.replaceWith(shown);
  }
  lines.replaceChildren(...fresh.childNodes);
  // a link that has the focus keeps it
  if (on) [...lines.querySelectorAll("[data-line]")].find((line) => line.dataset.line === on)?.querySelector("a")?.focus();
  showAges();
}, LINES_MS);

document.addEventListener("keydown", (event) => {
  const key = keyOf(event);
  if (key !== "j" && key !== "k") return;
  const links = [...document.querySelectorAll("[data-line] .links a")];
  const at = links.indexOf(document.activeElement);
  links[Math.min(links.length - 1, Math.max(0, at + (key === "j" ? 1 : -1)))]?.focus();
  event.preventDefault();
});

live.on("line", refreshLines);
live.on("again", refreshLines);
// a line that falls silent says nothing
setInterval(() => { if (!document.hidden) refreshLines(); }, SILENT_MS);
