// Zoom and pan of the frame: the attribute viewBox of its SVG. The frame itself is loaded when the preview is not enough.
"use strict";

const ENOUGH = 1.2;
const FARTHEST = 40;

function setUpZoom(svg) {
  const [width, height] = [Number(svg.dataset.width), Number(svg.dataset.height)];
  let box = { x: 0, y: 0, w: width };
  const scale = () => width / box.w;

  const show = () => {
    box.w = Math.min(width, Math.max(width / FARTHEST, box.w));
    const h = (box.w * height) / width;
    box.x = Math.min(width - box.w, Math.max(0, box.x));
    box.y = Math.min(height - h, Math.max(0, box.y));
    svg.setAttribute("viewBox", `${box.x} ${box.y} ${box.w} ${h}`);
    svg.classList.toggle("zoomed", scale() > 1.001);
    if (scale() > ENOUGH) loadFrame();
  };

  const loadFrame = () => {
    const { full } = svg.dataset;
    if (!full) return;
    delete svg.dataset.full;
    const picture = new Image();
    picture.addEventListener("load", () => svg.querySelector("image.frame").setAttribute("href", full));
    picture.src = full;
  };

  // Where in the frame a place of the window is.
  const at = (x, y) => {
    const point = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM().inverse());
    return { x: point.x, y: point.y };
  };
  const zoom = (factor, place = null) => {
    const h = (box.w * height) / width;
    const keep = place ?? { x: box.x + box.w / 2, y: box.y + h / 2 };
    const w = Math.min(width, Math.max(width / FARTHEST, box.w / factor));
    const by = w / box.w;
    box = { x: keep.x - (keep.x - box.x) * by, y: keep.y - (keep.y - box.y) * by, w };
    show();
  };
  const fit = () => {
    box = { x: 0, y: 0, w: width };
    show();
  };
  const part = () => {
    const [x, y, w, h] = (svg.dataset.part ?? "").split(" ").map(Number);
    if (!w || !h) return;
    const wanted = Math.max(w, (h * width) / height) * 1.1;
    box = { x: x + w / 2 - wanted / 2, y: y + h / 2 - (wanted * height) / width / 2, w: wanted };
    show();
  };
  const pan = (dx, dy) => {
    box.x += dx * box.w;
    box.y += (dy * box.w * height) / width;
    show();
  };

  svg.addEventListener("wheel", (event) => {
    const factor = Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.002));
    if (factor < 1 && scale() <= 1.001) return; // nothing to zoom out of: the page scrolls
    event.preventDefault();
    zoom(factor, at(event.clientX, event.clientY));
  }, { passive: false });

  const fingers = new Map();
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return { gap: Math.hypot(a.x - b.x, a.y - b.y), x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
  };
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    if (fingers.size > 0 || scale() > 1.001) svg.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  svg.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    if (fingers.size === 2) {
      const before = spread();
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      const now = spread();
      if (before.gap > 0) zoom(now.gap / before.gap, at(now.x, now.y));
    } else if (scale() > 1.001) {
      const from = fingers.get(event.pointerId);
      const [a, b] = [at(from.x, from.y), at(event.clientX, event.clientY)];
      box.x += a.x - b.x;
      box.y += a.y - b.y;
      show();
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    }
  });
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
    svg.addEventListener(name, (event) => fingers.delete(event.pointerId));
  }
  svg.addEventListener("dblclick", (event) => (scale() > 1.001 ? fit() : zoom(3, at(event.clientX, event.clientY))));

  byId("zoom-in").addEventListener("click", () => zoom(1.5));
  byId("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  byId("zoom-fit").addEventListener("click", fit);
  byId("zoom-part")?.addEventListener("click", part);
  return { zoom, fit, part, pan };
}
