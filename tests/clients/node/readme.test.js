// The README's examples in JavaScript, run as they stand there against the demo.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { promisify } from 'node:util';

const { DEMO_URL, README } = process.env;
assert.ok(DEMO_URL && README, 'DEMO_URL and README must be set');

const text = readFileSync(README, 'utf8');
const examples = [...text.matchAll(/^```js\n([^]*?)^```\n```text output\n([^]*?)^```$/gm)];

test('every example shows what it prints', () => {
  assert.ok(examples.length > 0);
  assert.equal(examples.length, text.split('\n```js\n').length - 1);
});

examples.forEach(([, example, shown], number) => {
  test(`example ${number} prints what is shown`, async () => {
    const here = example.replaceAll('http://127.0.0.1:4100', DEMO_URL);
    assert.notEqual(here, example, 'it asks the demo');
    // Beside the tests, where its packages are found.
    const file = new URL(`example-${number}.mjs`, import.meta.url);
    writeFileSync(file, here);
    const { stdout } = await promisify(execFile)(process.execPath, [file.pathname], { timeout: 50_000 });
    assert.equal(stdout, shown);
  });
});
