// The slider: what another threshold would have done, while it moves. Numbers are the server's.
"use strict";

const WAIT_MS = 120;
const main = byId("insight");
const slider = byId("threshold");
const number = byId("threshold-number");

function grouped(value) {
  return Math.round(value).toString().replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
}

function bytes(value) {
  if (value < 1e3) return `${value.toFixed(0)} B`;
  if (value < 1e6) return `${(value / 1e3).toFixed(1)} kB`;
  if (value < 1e9) return `${(value / 1e6).toFixed(1)} MB`;
  return `${(value / 1e9).toFixed(1)} GB`;
}

function showOutcome(now, proposed) {
  for (const row of document.querySelectorAll("#proposed [data-row]")) {
    const name = row.dataset.row;
    const words = name === "bytes" ? bytes : grouped;
    const by = proposed[name] - now[name];
    row.querySelector("[data-figure]").textContent = words(proposed[name]);
    const difference = row.querySelector("[data-difference]");
    difference.textContent = `${by > 0 ? "+" : by < 0 ? "−" : ""}${words(Math.abs(by))}`;
    difference.className = `n ${by > 0 ? "more" : by < 0 ? "less" : "same"}`;
  }
}

function showThreshold(value) {
  const scores = byId("scores");
  const [low, high] = [Number(scores.dataset.low), Number(scores.dataset.high)];
  const x = String(Math.min(1000, Math.max(0, ((value - low) / (high - low)) * 1000)));
  const line = byId("proposed-line");
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
  const decimals = Math.min(8, Math.max(0, -Math.floor(Math.log10((high - low) / 500))));
  number.value = value.toFixed(decimals);
  byId("set-threshold").textContent = number.value;
}

if (slider) {
  let asked = Number(slider.value);
  const show = gathered(async () => {
    const query = new URLSearchParams(location.search);
    query.set("line", main.dataset.line);
    query.set("model", main.dataset.model);
    query.set("threshold", String(asked));
    const { current, proposed } = await (await ask(`/api/v1/stats/what-if?${query}`)).json();
    showOutcome(current, proposed ?? current);
    history.replaceState(null, "", `?${query}`);
  }, WAIT_MS);
  const set = (value) => {
    asked = value;
    slider.value = value;
    showThreshold(value);
    show();
  };
  slider.addEventListener("input", () => set(Number(slider.value)));
  slider.addEventListener("keydown", (event) => {
    const step = (Number(slider.max) - Number(slider.min)) / 200;
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (!by) return;
    event.preventDefault();
    set(Math.min(Number(slider.max), Math.max(Number(slider.min), asked + by * step)));
  });
  byId("what-if-form").addEventListener("submit", (event) => {
    const value = Number(number.value.replace(",", "."));
    if (!Number.isFinite(value) || value < 0) return;
    event.preventDefault();
    set(value);
  });
  byId("threshold-reset").addEventListener("click", (event) => {
    event.preventDefault();
    set(Number(slider.dataset.current));
  });
  document.addEventListener("keydown", (event) => {
    if (keyOf(event) !== "t") return;
    slider.focus();
    event.preventDefault();
  });
}
