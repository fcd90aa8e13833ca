/**
 * The page in Chromium. `make web-test` runs it; it needs build/web, and Chromium at $CHROMIUM or
 * /usr/bin/chromium. With SCREENSHOTS=FOLDER it leaves pictures of the page there.
 */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const { chromium } = createRequire(join(ROOT, "web/package.json"))("playwright-core");
const PYTHON = process.env.PYTHON ?? join(ROOT, ".venv/bin/python");
const EXECUTABLE = process.env.CHROMIUM ?? "/usr/bin/chromium";
const PAGE = join(ROOT, "build/web");
const CATALOGUE = JSON.parse(readFileSync(join(PAGE, "catalogue.json"), "utf8"));
const ENV = { ...process.env, PYTHONPATH: ROOT, OMP_NUM_THREADS: "1" };
const ARGUMENTS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
const MINUTES = 60_000;

const temporary = mkdtempSync(join(tmpdir(), "page-"));
let browser, page, servers, requests;

/** Start web/serve.py and return it with its address. */
async function serve(...options) {
  const command = ["web/serve.py", PAGE, "--port", "0", ...options];
  const child = spawn(PYTHON, command, { cwd: ROOT, env: ENV, stdio: ["ignore", "pipe", "inherit"] });
  const [line] = await new Promise((resolve, reject) => {
    child.stdout.once("data", (data) => resolve(String(data).split(" ")));
    child.once("exit", () => reject(new Error("web/serve.py ended")));
  });
  return { child, address: line };
}

before(async () => {
  servers = { threads: await serve(), single: await serve("--no_isolation") };
  browser = await chromium.launch({ executablePath: EXECUTABLE, args: ARGUMENTS });
});

after(async () => {
  await browser?.close();
  for (const { child } of Object.values(servers ?? {})) child.kill();
  rmSync(temporary, { recursive: true, force: true });
});

beforeEach(async () => {
  requests = [];
  await open({ viewport: { width: 1360, height: 900 } });
});

afterEach(() => page.context().close());

async function open(options, server = servers.threads, used = browser, query = "", catalogue = null) {
  const context = await used.newContext(options);
  if (catalogue) await context.route("**/catalogue.json", (route) => route.fulfill({ json: catalogue }));
  page = await context.newPage();
  page.setDefaultTimeout(5 * MINUTES);
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => assert.fail(error));
  await page.goto(server.address + query);
  await page.locator("#examples button").first().waitFor();
}

/** A small picture of odd size, cut from an example: the bytes of a PNG. */
async function smallPicture(path) {
  const base64 = await page.evaluate(async (url) => {
    const bitmap = await createImageBitmap(await (await fetch(url)).blob(), 100, 80, 90, 70);
    const canvas = new OffscreenCanvas(90, 70);
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    const bytes = new Uint8Array(await (await canvas.convertToBlob()).arrayBuffer());
    return btoa(String.fromCharCode(...bytes));
  }, path);
  return Buffer.from(base64, "base64");
}

async function choosePicture(name, buffer) {
  await page.locator("#file").setInputFiles({ name, mimeType: "image/png", buffer });
}

async function chooseNetwork({ task, name }) {
  await page.locator(`[name=task][value=${task}]`).check({ force: true });
  await page.locator("#network").selectOption(name);
}

async function restored() {
  await page.getByRole("button", { name: "Restore", exact: true }).click();
  await page.locator("#download").or(page.locator("#error:not(:empty)")).waitFor();
  assert.equal(await page.locator("#error").textContent(), "");
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.locator("#download").click(),
  ]);
  const path = join(mkdtempSync(join(temporary, "download-")), download.suggestedFilename());
  await download.saveAs(path);
  return path;
}

/** What demo.py makes of a picture. */
function expected(picture, weights, ...more) {
  const results = mkdtempSync(join(temporary, "results-"));
  const options = ["--weights", weights, "--input_dir", picture, "--result_dir", results, ...more];
  execFileSync(PYTHON, ["demo.py", ...options, "--device", "cpu"], { cwd: ROOT, env: ENV });
  return join(results, picture.split("/").at(-1));
}

/** The largest difference between two pictures' values, of 255. */
async function difference(...paths) {
  const urls = paths.map((path) => `data:image/png;base64,${readFileSync(path).toString("base64")}`);
  return page.evaluate(async (pictures) => {
    const [first, second] = await Promise.all(pictures.map(async (url) => {
      const image = Object.assign(new Image(), { src: url });
      await image.decode();
      const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      return context.getImageData(0, 0, canvas.width, canvas.height);
    }));
    if (first.width !== second.width || first.height !== second.height) return Infinity;
    let most = 0;
    first.data.forEach((v, i) => (most = Math.max(most, Math.abs(v - second.data[i]))));
    return most;
  }, urls);
}

async function screenshot(name) {
  if (process.env.SCREENSHOTS) {
    await page.screenshot({ path: join(process.env.SCREENSHOTS, `${name}.png`) });
  }
}

for (const network of CATALOGUE.networks) {
  test(`${network.name} restores as demo.py does`, async () => {
    const picture = join(temporary, "small.photo.png");
    writeFileSync(picture, await smallPicture(CATALOGUE.examples[0].input));
    await choosePicture("small.photo.png", readFileSync(picture));
    await chooseNetwork(network);
    const result = await restored();
    assert.equal(result.split("/").at(-1), "small.photo.png");
    assert.ok((await difference(result, expected(picture, network.name))) <= 1);
    assert.equal(await page.locator("#stages li").count(), network.sizes.stages);
  });
}

test("an example is restored as demo.py does, and its PSNR rises", async () => {
  const [example] = CATALOGUE.examples;
  await page.locator("#examples button").first().click();
  const { name } = CATALOGUE.networks.find((n) => n.task === example.task && n.default);
  const result = await restored();
  const picture = join(temporary, example.name);
  copyFileSync(join(PAGE, example.input), picture);
  assert.ok((await difference(result, expected(picture, name))) <= 1);
  const [before, after] = (await page.locator("#scores dd").allTextContents()).map(parseFloat);
  assert.ok(after > before, `${before} dB → ${after} dB`);
  await screenshot("page");
  assert.ok(requests.every((url) => url.startsWith(servers.threads.address) || /^(blob|data):/.test(url)));
});

test("a picture larger than a tile is restored as demo.py does with tiles of the same size", async () => {
  await page.context().close();
  const [network] = CATALOGUE.networks;
  const wide = { ...network, sizes: { ...network.sizes, width: 1e4 } }; // tiles are 256 at least
  await open({}, servers.threads, browser, "", { ...CATALOGUE, networks: [wide] });
  const [example] = CATALOGUE.examples;
  const picture = join(temporary, example.name);
  copyFileSync(join(PAGE, example.input), picture);
  await choosePicture(example.name, readFileSync(picture));
  const result = await restored();
  assert.ok((await difference(result, expected(picture, network.name, "--tile", "256"))) <= 1);
});

test("work is cancelled, and can be started again", async () => {
  await page.locator("#examples button").last().click();
  await page.getByRole("button", { name: "Restore", exact: true }).click();
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByText("Cancelled.").waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), "restore");
  await choosePicture("small.png", await smallPicture(CATALOGUE.examples[0].input));
  await restored();
});

test("a file that is no picture is refused, and the page goes on", async () => {
  await choosePicture("broken.png", Buffer.from("no picture"));
  await page.getByText("broken.png is not a picture that this browser can open").waitFor();
  await choosePicture("small.png", await smallPicture(CATALOGUE.examples[0].input));
  await page.getByText("small.png is ready").waitFor();
  assert.equal(await page.locator("#error").textContent(), "");
  await restored();
});

test("a picture that is too large is refused", async () => {
  const size = Buffer.from(await page.evaluate(async () => {
    const canvas = new OffscreenCanvas(8000, 8000);
    canvas.getContext("2d").fillRect(0, 0, 1, 1);
    const blob = await canvas.convertToBlob();
    return [...new Uint8Array(await blob.arrayBuffer())];
  }));
  await choosePicture("large.png", size);
  await page.getByText("large.png has 64 megapixels, and this page takes up to 50").waitFor();
});

test("a network that cannot be loaded is named, and may be there the next time", async () => {
  await page.context().route("**/*.onnx", (route) => route.abort());
  await choosePicture("small.png", await smallPicture(CATALOGUE.examples[0].input));
  await page.getByRole("button", { name: "Restore", exact: true }).click();
  await page.getByText(/\.onnx could not be loaded. Is the server running\?/).waitFor();
  await page.context().unroute("**/*.onnx");
  await restored();
});

test("without the headers it runs on one thread and says so", async () => {
  await page.context().close();
  await open({}, servers.single);
  const picture = join(temporary, "single.png");
  writeFileSync(picture, await smallPicture(CATALOGUE.examples[0].input));
  await choosePicture("single.png", readFileSync(picture));
  const [network] = CATALOGUE.networks;
  await chooseNetwork(network);
  const result = await restored();
  assert.match(await page.locator("#backend").textContent(), /one thread: the server/);
  assert.ok((await difference(result, expected(picture, network.name))) <= 1);
});

test("a seed always degrades a picture in the same way", async () => {
  await choosePicture("small.png", await smallPicture(CATALOGUE.examples.at(-1).input));
  await page.locator("summary").click();
  const checksum = () => page.evaluate(() => {
    const canvas = document.querySelector("#before");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.reduce((sum, value, i) => (sum * 31 + value + i) % 2 ** 31, 0);
  });
  const clean = await checksum();
  const seen = new Set([clean]);
  for (const preset of CATALOGUE.presets) {
    for (const seed of ["7", "8", "7"]) {
      await page.locator("#seed").fill(seed);
      await page.locator("#preset").selectOption("");
      await page.locator("#preset").selectOption(preset.name);
      await page.getByText(`Added ${preset.label}.`).waitFor();
      seen.add(await checksum());
    }
  }
  assert.equal(seen.size, 1 + 2 * CATALOGUE.presets.length);
  await page.locator("#preset").selectOption("");
  assert.equal(await checksum(), clean);
});

test("it works with the keyboard alone", async () => {
  await choosePicture("small.png", await smallPicture(CATALOGUE.examples[0].input));
  await page.getByText("small.png is ready").waitFor();
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.name);
  const reach = async (name) => {
    for (let i = 0; i < 30 && (await focused()) !== name; i++) await page.keyboard.press("Tab");
    assert.equal(await focused(), name);
  };
  await reach("task");
  const before = await page.locator("[name=task]:checked").getAttribute("value");
  await page.keyboard.press("ArrowDown");
  assert.notEqual(await page.locator("[name=task]:checked").getAttribute("value"), before);
  await reach("restore");
  await page.keyboard.press("Enter");
  await page.locator("#download").waitFor();
  await page.locator("#slider").focus();
  const clip = () => page.locator("#after").evaluate((after) => after.style.clipPath);
  const there = await clip();
  await page.keyboard.press("ArrowRight");
  assert.notEqual(await clip(), there);
});

// Chromium's software renderer loses its device on a busy machine: run with WEBGPU=1 on a quiet one.
const webgpu = { skip: process.env.WEBGPU ? false : "WEBGPU=1 runs it" };
test("WebGPU gives the same; where it does not, the processor is used", webgpu, async (t) => {
  const software = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
  const args = [...ARGUMENTS.filter((argument) => argument !== "--disable-gpu"), ...software];
  const other = await chromium.launch({ executablePath: EXECUTABLE, args });
  t.after(() => other.close());
  const picture = await smallPicture(CATALOGUE.examples[0].input);
  const [network] = CATALOGUE.networks;
  const results = [];
  const wrong = { ...CATALOGUE, networks: [{ ...network, check: network.check.map((v) => v + 0.01) }] };
  for (const catalogue of [CATALOGUE, wrong]) {
    await page.context().close();
    await open({}, servers.threads, other, "?backend=webgpu", catalogue);
    await choosePicture("webgpu.png", picture);
    results.push(await restored());
    results.push(await page.locator("#backend").textContent());
  }
  if (/no graphics card/.test(results[1])) return t.skip("this Chromium has no WebGPU");
  assert.match(results[1], /^Runs on the graphics card/);
  assert.match(results[3], /^Runs on the processor .* The graphics card could not/);
  assert.ok((await difference(results[0], results[2])) <= 1);
});

for (const [name, options] of Object.entries({
  phone: { viewport: { width: 375, height: 812 }, isMobile: true, deviceScaleFactor: 2 },
  dark: { viewport: { width: 1360, height: 900 }, colorScheme: "dark" },
})) {
  test(`it fits ${name}`, async () => {
    await page.context().close();
    await open(options);
    await choosePicture("small.png", await smallPicture(CATALOGUE.examples[0].input));
    await restored();
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(wide <= 0, `${wide} pixels wider than the window`);
    const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const [brightness] = background.match(/\d+/);
    assert.equal(Number(brightness) < 128, name === "dark");
    await page.locator("#frame").scrollIntoViewIfNeeded();
    await screenshot(name);
  });
}
