// Asks with openai-node as often as there are markers on standard input, and prints how it went. The other half of
// tests/clients/repeats/run.py.
import { readFileSync } from 'node:fs';
import OpenAI from 'openai';

const [, , baseURL, atOnce] = process.argv;
const markers = readFileSync(0, 'utf8').split('\n');
const client = new OpenAI({ baseURL, apiKey: 'none', timeout: 60_000 });
const ended = {};

async function one(marker, stream) {
  try {
    const messages = [{ role: 'user', content: marker }];
    const answer = await client.chat.completions.create({ model: 'm', messages, stream });
    if (stream) for await (const _ of answer);
    return 'answered';
  } catch (error) {
    return String(error.status ?? error.constructor.name);
  }
}

async function worker() {
  while (next < markers.length) {
    const i = next++;
    const how = await one(markers[i], i % 2 === 0);
    ended[how] = (ended[how] ?? 0) + 1;
  }
}

let next = 0;
await Promise.all(Array.from({ length: Number(atOnce) }, worker));
console.log(JSON.stringify(ended));
