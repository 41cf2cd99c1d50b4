// A browser, pages that are watched, and what is measured of them.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium as playwright } from "playwright-core";
import { chromium } from "./server.js";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const HEIGHTS = { 390: 844, 1280: 800, 3840: 2160 };
export const WIDTHS = Object.keys(HEIGHTS).map(Number);
export const THEMES = ["light", "dark"];

export const launch = () => playwright.launch({ executablePath: chromium(), args: FLAGS });

// A fresh context (nothing cached) with a page in it. `faults` collects what no page may have.
export async function open(browser, { width = 1280, theme = "light", ...more } = {}) {
  const context = await browser.newContext({
    viewport: { width, height: HEIGHTS[width] }, colorScheme: theme, hasTouch: width < 600, ...more,
  });
  const page = await context.newPage();
  const faults = [];
  let expected = false;
  page.on("console", (message) => {
    if (!expected && ["error", "warning"].includes(message.type())) faults.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => faults.push(`script: ${error.message}`));
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`);
    });
  });
  return {
    page, context, faults,
    // While the server is away, the browser itself complains of it.
    expectTrouble(is) { expected = is; },
  };
}

const LOADS = 12;

// What a page costs who opens it for the first time: bytes over the network, and milliseconds to the first picture. Other work on
// the machine only adds to the latter, so it is the best of some loads: of three, and of more while that is not `enough`.
export async function weigh(browser, url, enough, options) {
  const first = await load(browser, url, options);
  const paints = [first.paint];
  while (paints.length < 3 || (Math.min(...paints) >= enough && paints.length < LOADS)) {
    paints.push((await load(browser, url, options)).paint);
  }
  return { ...first, paint: Math.min(...paints), loads: paints.length, slowest: Math.max(...paints) };
}

async function load(browser, url, options) {
  const { page, context } = await open(browser, options);
  const devtools = await context.newCDPSession(page);
  await devtools.send("Network.enable");
  const sizes = new Map();
  const names = new Map();
  devtools.on("Network.responseReceived", ({ requestId, response }) => names.set(requestId, response.url));
  devtools.on("Network.loadingFinished", ({ requestId, encodedDataLength }) => sizes.set(requestId, encodedDataLength));
  await page.goto(url, { waitUntil: "load" });
  await page.waitForTimeout(700); // what scripts ask for after loading
  const paint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime);
  const bytes = [...sizes.values()].reduce((sum, size) => sum + size, 0);
  const largest = [...sizes].sort((a, b) => b[1] - a[1]).slice(0, 3).map(([id, size]) => `${size} ${names.get(id)}`);
  await context.close();
  return { bytes, paint, requests: sizes.size, largest };
}

// What axe finds wrong. It needs to run a script of its own, which the pages' policy forbids to everybody else: it comes in
// through the debugger.
export async function accessibility(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() =>
    // eslint-disable-next-line no-undef -- it was just put there
    axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
  return violations.flatMap(({ id, help, nodes }) =>
    nodes.map((node) => `${id}: ${help}: ${node.html.slice(0, 160)} ${node.failureSummary?.replaceAll("\n", " ")}`));
}
