// Starts what is tested: the real programs, in folders of their own, and ends them by their own process.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";

const root = resolve(import.meta.dirname, "../..");
const target = process.env.CARGO_TARGET_DIR ?? join(root, "target");
export const program = process.env.LINESIGHT ?? join(target, "debug/linesight");
export const out = join(target, "ui");
const LINE = /review page: (http:\/\/\S+)/;
const WELCOME = /first account: (http:\/\/\S+)/;
const DEADLINE_MS = 300_000;

export const work = mkdtempSync(join(tmpdir(), "linesight-ui-"));
process.setMaxListeners(0); // each program that is started has one, for its end
process.on("exit", () => rmSync(work, { recursive: true, force: true }));
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1)); // so that what was started ends, too
mkdirSync(out, { recursive: true });

// Not the state of who runs the tests.
const env = { ...process.env, XDG_STATE_HOME: join(work, "state") };

// Runs a command to its end; what it prints is shown when it fails.
export function run(name, args, options = {}) {
  return new Promise((done, fail) => {
    const child = spawn(name, args, { cwd: root, stdio: ["ignore", "pipe", "pipe"], env, ...options });
    process.on("exit", () => child.kill("SIGKILL"));
    let text = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => { text += data; });
    const timer = setTimeout(() => child.kill("SIGKILL"), DEADLINE_MS);
    child.on("error", fail);
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      if (code === 0) done(text);
      else fail(new Error(`${name} ${args.join(" ")} ended with ${code ?? signal}:\n${text}`));
    });
  });
}

export const linesight = (...args) => run(program, args);

// A review server on `data`; `port` 0 picks a free one. `welcome` is the link to the first account, where it printed one.
export function serve(data, port = 0, more = []) {
  return new Promise((done, fail) => {
    const child = spawn(program, ["review", "--data", data, "--listen", `127.0.0.1:${port}`, ...more], {
      cwd: root, stdio: ["ignore", "pipe", "pipe"], env,
    });
    let text = "";
    let welcome;
    const ended = new Promise((over) => child.on("close", over));
    child.stderr.on("data", (data) => { text += data; });
    createInterface({ input: child.stdout }).on("line", (line) => {
      welcome ??= WELCOME.exec(line)?.[1];
      const found = LINE.exec(line);
      if (found) {
        const url = found[1];
        done({ url, welcome, port: Number(new URL(url).port), kill: (signal) => { child.kill(signal); return ended; } });
      }
    });
    child.on("close", (code) => fail(new Error(`the review server ended with ${code}:\n${text}`)));
    child.on("error", fail);
    process.on("exit", () => child.kill("SIGKILL"));
  });
}

// A model of the bundled sample, taught once.
export async function teach() {
  const model = join(work, "washer");
  await linesight("teach", "--good", join(root, "assets/sample-teach.mp4"), "--trigger", "presence", "--name", "washer",
    "--method", "ppca", "--out", model);
  return model;
}

export const sample = join(root, "assets/sample-run.mp4");

export const inspect = (model, url, line) => linesight("inspect", "--model", model, sample, "--review", url, "--line", line);

// Lines that run as in a plant: they report, too, which `inspect` does not.
export function plant(model, url, lines) {
  const config = join(work, "line.toml");
  const sections = lines.map(({ name, lot, serial }) =>
    `[[line]]\nname = "${name}"\nsource = "${sample}"\nmodel = "${model}"\nrealtime = false\nlot = "${lot}"\nserial = "${serial}"\n`);
  writeFileSync(config, [
    'site = "plant-7"', "[spool]", `database = "${join(work, "spool.db")}"`, "[review]", `url = "${url}"`,
    "[observe]", 'listen = "off"', ...sections,
  ].join("\n"));
  return linesight("run", "--config", config);
}

// Other checks that want a server full of reviewed anomalies; each is a program that takes its address.
export const hooks = ["exports.sh", "exports.py", "schemathesis.sh"]
  .map((name) => join(import.meta.dirname, name))
  .filter((path) => existsSync(path));

// Where the readers of the exports' formats are, when they were installed.
const venv = join(root, ".venv-ui/bin");
export const tools = existsSync(join(venv, "python")) ? venv : null;

export function chromium() {
  const named = process.env.CHROMIUM;
  const names = named ? [named] : ["chromium", "chromium-browser", "google-chrome"];
  for (const name of names) {
    const found = spawnSync("which", [name], { encoding: "utf8" });
    if (found.status === 0) return found.stdout.trim();
  }
  throw new Error("there is no Chromium: run make setup, or name one with CHROMIUM");
}
