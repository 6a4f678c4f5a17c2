// The inspector in a browser, before a running demo (DEMO_URL, DEMO_ADMIN), and before a proxy whose model server
// is the lab (FANFOLD_URL, FANFOLD_ADMIN, LAB_URL). Pictures go to SHOTS.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { chromium } from 'playwright-core';

const { DEMO_URL, DEMO_ADMIN, FANFOLD_URL, FANFOLD_ADMIN, LAB_URL, SHOTS } = process.env;
assert.ok(DEMO_URL && DEMO_ADMIN && FANFOLD_URL && FANFOLD_ADMIN && LAB_URL && SHOTS, 'the environment is incomplete');
const QUESTION = 'What is the weather in Paris, Tokyo, Lima, Berlin, Rome and Oslo?';
const run = promisify(execFile);

let browser;
before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
});
after(() => browser?.close());

/** Opens a page that may ask nobody but its own origin and must not complain. */
async function visit(url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1320, height: 860 }, ...options });
  await context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: new URL(url).origin });
  const page = await context.newPage();
  const wrong = [];
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && wrong.push(message.text()));
  page.on('pageerror', (error) => wrong.push(String(error.stack)));
  page.on('request', (request) => {
    const to = new URL(request.url());
    if (to.protocol !== 'data:' && to.origin !== new URL(url).origin) wrong.push(`asked ${to}`);
  });
  await page.goto(url);
  await page.waitForSelector('.live.on');
  return { page, close: async () => { assert.deepEqual(wrong, []); await context.close(); } };
}

/** Selects the newest run, once the list is there: it comes after the page says that it is connected. */
async function newest(page) {
  await page.locator('.row').first().waitFor();
  await page.keyboard.press('j');
}

async function ask(base, body, key) {
  const headers = { 'content-type': 'application/json', ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(`${base}/v1/chat/completions`, { method: 'POST', headers, body: JSON.stringify(body) });
  return { status: answer.status, text: await answer.text(), id: answer.headers.get('x-request-id') };
}
const says = (content, model = 'demo') => ({ model, messages: [{ role: 'user', content }] });

async function script(name, rounds) {
  const answer = await fetch(`${LAB_URL}/_script/${name}`, { method: 'POST', body: JSON.stringify({ rounds }) });
  assert.equal(answer.status, 200, await answer.text());
  return `script:${name}`;
}
const calls = (...list) => ({ reply: { calls: list.map(([name, args]) => ({ name, arguments: args })) } });
const text = (said) => ({ reply: { text: said, calls: [] } });

const shot = (page, name) => page.screenshot({ path: `${SHOTS}/${name}.png` });
const box = (locator) => locator.evaluate((element) => { const { left, right, top, bottom } = element.getBoundingClientRect(); return { left, right, top, bottom }; });

test('an empty inspector shows the first command, and it works', async () => {
  const { page, close } = await visit(DEMO_ADMIN);
  await page.getByText('Nothing has run yet').waitFor();
  const command = await page.locator('#first').textContent();
  await shot(page, 'empty');
  const { stdout } = await run('sh', ['-c', command], { env: { PATH: process.env.PATH } });
  assert.match(stdout, /data: \[DONE\]/);
  await page.locator('.row .dot.ok').waitFor();
  await close();
});

test('a run is seen while it goes on, and how it ends', async () => {
  const model = await script('long', [calls(['nap', { ms: 8000 }], ['nap', { ms: 8001 }]), text('rested')]);
  const { page, close } = await visit(FANFOLD_ADMIN);
  const asked = ask(FANFOLD_URL, says('hi', model), 'token');
  await page.locator('.row .dot.running').first().waitFor();
  await page.locator('.row').first().click();
  await page.locator('.badge.running').waitFor();
  await page.locator('.seg.run.open').nth(1).waitFor();
  await shot(page, 'running');
  await asked;
  await page.locator('.badge.ok').waitFor();
  assert.equal(await page.locator('.open').count(), 0, 'nothing runs any more');
  assert.match(await page.locator('#panel').textContent(), /8000/, 'what was said is there now');
  await close();
});

test('parallel calls overlap inside a bracket', async () => {
  const { page, close } = await visit(DEMO_ADMIN);
  const { id } = await ask(DEMO_URL, says(QUESTION));
  await page.goto(`${DEMO_ADMIN}/#run=${id}`);
  await page.locator('.badge.ok').waitFor();
  assert.equal(await page.locator('.lane.round').count(), 2);
  const bars = page.locator('.batch .seg.run');
  assert.equal(await bars.count(), 6);
  const all = await Promise.all([...Array(6).keys()].map((i) => box(bars.nth(i))));
  for (let i = 1; i < 6; i += 1) {
    assert.ok(all[i].left < all[i - 1].right, `call ${i + 1} begins before the one above it ends`);
    assert.ok(all[i].top >= all[i - 1].bottom, 'each call has a lane of its own');
  }
  const bracket = await box(page.locator('.bracket'));
  assert.ok(bracket.top < all[0].bottom && bracket.bottom > all[5].top, 'the bracket spans all calls');
  assert.match(await page.locator('.sum').textContent(), /^batch \d\.\d\d s, one after another \d\.\d\d s, ×[2-6]\.\d$/);
  assert.match(await page.locator('.lane.round').first().textContent(), /Round 1first token \d+ ms/);
  await shot(page, 'run');
  await page.setViewportSize({ width: 1180, height: 640 });
  await shot(page, 'inspector');
  await close();
});

test('every tab shows what was said', async () => {
  const { page, close } = await visit(DEMO_ADMIN);
  await newest(page);
  await page.locator('.badge.ok').waitFor();
  const panel = page.locator('#panel');
  assert.match(await panel.textContent(), /"city": "Paris"[\s\S]*light rain/);
  await page.click('#tab-messages');
  assert.match(await panel.textContent(), /What is the weather in Paris[\s\S]*get_weather[\s\S]*Here is what I found/);
  await page.click('#tab-upstream');
  assert.match(await panel.textContent(), /Round 1[\s\S]*"parameters"[\s\S]*Round 2[\s\S]*"role": "tool"/);
  await page.click('#tab-response');
  assert.match(await panel.textContent(), /^Here is what I found:\n- Paris: 18 °C/);
  await page.click('#tab-record');
  assert.match(await panel.textContent(), /"finish": "tool_calls"/);
  assert.match(await page.locator('#decision').textContent(), /parallel callson: No tool is strict/);
  await shot(page, 'tabs');
  await page.locator('.lane.call').nth(2).click();
  assert.equal(await page.locator('#tab-calls').getAttribute('aria-selected'), 'true');
  await close();
});

test('copy as curl gives a command that works and has no secret', async () => {
  const model = await script('curl', [calls(['echo', { text: "it's $HOME" }]), text("it's done")]);
  const sent = says("it's `true` $HOME \"quoted\"", model);
  await ask(FANFOLD_URL, sent, 'token');
  await script('curl', [text('asked again')]);
  const { page, close } = await visit(FANFOLD_ADMIN);
  await newest(page);
  await page.locator('.badge.ok').waitFor();
  await page.click('#curl');
  const command = await page.evaluate(() => navigator.clipboard.readText());
  assert.ok(command.includes('$FANFOLD_API_KEY') && !command.includes('token'), command);
  const { stdout } = await run('sh', ['-c', command], { env: { PATH: process.env.PATH, FANFOLD_API_KEY: 'token' } });
  assert.equal(JSON.parse(stdout).choices[0].message.content, 'asked again', command);
  const copied = page.locator('.row').nth(1);
  await page.click('#link');
  const link = await page.evaluate(() => navigator.clipboard.readText());
  await copied.waitFor();
  const other = await visit(link);
  await other.page.locator('.badge.ok').waitFor();
  assert.equal(await other.page.locator('.row[aria-selected="true"]').count(), 1, 'a link leads to its run');
  await other.close();
  await close();
});

test('waiting, other tries and failures are drawn apart, and hostile text stays text', async () => {
  const evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>';
  const model = await script('evil', [calls(['slow', { ms: 300 }], ['slow', { ms: 301 }], ['flaky', {}], ['echo', { text: evil }], [`${evil}`, {}]), text(evil)]);
  const { id } = await ask(FANFOLD_URL, says(evil, model), 'token');
  const { page, close } = await visit(`${FANFOLD_ADMIN}/#run=${id}`);
  await page.locator('.badge.ok').waitFor();
  assert.ok((await page.locator('.seg.wait').count()) >= 1, 'the second slow call waits for its slot');
  const wait = await box(page.locator('.lane.call').nth(1).locator('.seg.wait'));
  const ran = await box(page.locator('.lane.call').nth(1).locator('.seg.run'));
  assert.ok(wait.right - wait.left > 20 && Math.abs(wait.right - ran.left) < 2, 'it waits, then runs');
  const flaky = page.locator('.lane.call').nth(2);
  const tried = await box(flaky.locator('.again'));
  const bar = await box(flaky.locator('.seg.run.bad'));
  assert.ok(tried.left >= bar.left && tried.right <= bar.right + 3, 'another try is inside its bar');
  assert.match(await page.locator('#panel').textContent(), /tried 2 times[\s\S]*no such tool/);
  for (const tab of ['messages', 'upstream', 'response', 'record', 'calls']) {
    await page.click(`#tab-${tab}`);
    assert.ok((await page.locator('#panel').textContent()).includes(tab === 'response' ? evil : 'onerror'), tab);
    assert.equal(await page.locator('main img, main script, main b b').count(), 0);
  }
  await shot(page, 'waiting');
  assert.equal(await page.title(), 'fanfold');
  await close();
});

test('500 runs are listed, filtered and walked through by keyboard', async () => {
  const model = await script('many', [text('ok')]);
  let left = 500;
  const worker = async (key) => { while (left-- > 0) await ask(FANFOLD_URL, says('hi', model), key); };
  await Promise.all([...Array(8).keys()].map((i) => worker(i % 2 ? 'token' : 'abc')));
  assert.notEqual((await ask(FANFOLD_URL, says('hi', 'script:absent'), 'abc')).status, 200);
  const { page, close } = await visit(FANFOLD_ADMIN);
  const began = Date.now();
  await page.waitForFunction(() => document.querySelectorAll('.row').length >= 500);
  assert.ok((await page.locator('.row').count()) <= 500 + 2, 'no more are kept than may be');
  await shot(page, 'many');
  const first = await page.locator('.row').first().getAttribute('id');
  await page.keyboard.press('j');
  await page.keyboard.press('j');
  await page.keyboard.press('k');
  assert.equal(await page.locator('.row[aria-selected="true"]').getAttribute('id'), first);
  for (let i = 0; i < 30; i += 1) await page.keyboard.press('j');
  const selected = page.locator('.row[aria-selected="true"]');
  assert.ok(await selected.isVisible());
  const [row, rows] = [await box(selected), await box(page.locator('#rows'))];
  assert.ok(row.top >= rows.top - 1 && row.bottom <= rows.bottom + 1, 'the list follows');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'detail');
  await page.keyboard.press('Escape');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'rows');
  await page.keyboard.press('Escape');
  assert.equal(await page.locator('.row[aria-selected="true"]').count(), 0);

  await page.keyboard.press('/');
  await page.keyboard.type('many green');
  const ofGreen = await page.locator('.row').count();
  assert.ok(ofGreen > 100 && ofGreen < 400, `${ofGreen} of one team`);
  await page.keyboard.press('Escape');
  await page.selectOption('#team', 'green');
  assert.equal(await page.locator('.row').count(), ofGreen + 1, 'and the one that failed');
  await page.selectOption('#outcome', 'failed');
  assert.equal(await page.locator('.row').count(), 1);
  await page.selectOption('#outcome', '');
  await page.selectOption('#team', '');
  assert.ok(Date.now() - began < 60_000);
  await close();
});

test('tools and configuration are shown, without secrets and with their origin', async () => {
  const { page, close } = await visit(`${FANFOLD_ADMIN}/#tools`);
  const slow = page.locator('#tools tr', { hasText: 'slow' }).first();
  await slow.waitFor();
  assert.match(await slow.textContent(), /http.*up.*read.*\d+ ms/s);
  assert.match(await page.locator('#tools tr', { hasText: 'flaky' }).first().locator('.wrong').textContent(), /^[1-9]/);
  await page.locator('#tools summary').first().click();
  assert.match(await page.locator('#tools pre').first().textContent(), /"additionalProperties": false/);
  assert.equal(await page.locator('#tools .about b').count(), 0, 'a description is text');
  await shot(page, 'tools');
  await page.click('nav [data-page="config"]');
  const setting = (name) => page.locator('#config tr', { has: page.getByText(name, { exact: true }) });
  await setting('runs.keep').waitFor();
  assert.match(await setting('runs.keep').textContent(), /500default/);
  assert.match(await setting('runs.content').textContent(), /true.*fanfold\.yaml:\d+$/);
  assert.match(await setting('listen').textContent(), /environment/);
  assert.ok(!(await page.content()).includes('secret-of-the-upstream'));
  await page.fill('#config .find', 'rounds');
  assert.equal(await page.locator('#config tbody tr:visible').count(), 1);
  await shot(page, 'config');
  await close();
});

test('it is dark where the system is, and as somebody chose', async () => {
  const { page, close } = await visit(DEMO_ADMIN, { colorScheme: 'dark' });
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  assert.equal(await ground(), 'rgb(21, 23, 22)');
  await newest(page);
  await page.locator('.badge.ok').waitFor();
  await shot(page, 'dark');
  await page.click('#theme');
  assert.equal(await ground(), 'rgb(247, 247, 245)');
  await page.reload();
  await page.waitForSelector('.live.on');
  assert.equal(await ground(), 'rgb(247, 247, 245)', 'the choice stays');
  await close();
});

test('foreign hosts and origins are refused', async () => {
  for (const header of ['host: evil.example', 'origin: http://evil.example']) {
    for (const path of ['/', '/api/runs', '/api/events', '/api/config']) {
      const { stdout } = await run('curl', ['-s', '-o', '/dev/null', '-w', '%{http_code}', '-H', header, DEMO_ADMIN + path]);
      assert.equal(stdout, '403', `${path} with ${header}`);
    }
  }
});
