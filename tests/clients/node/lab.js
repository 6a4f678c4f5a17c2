// What the tests share: the lab's controls, clients of the proxy, and one shape for all answers.
// FANFOLD_URL is the proxy (or the lab itself, for tests named `direct`), LAB_URL the lab.
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const { FANFOLD_URL, LAB_URL } = process.env;
assert.ok(FANFOLD_URL && LAB_URL, 'FANFOLD_URL and LAB_URL must be set');

export const baseURL = `${FANFOLD_URL}/v1`;
export const HI = [{ role: 'user', content: 'hi' }];

export const client = (maxRetries = 0) =>
  new OpenAI({ baseURL, apiKey: 'client-key', maxRetries, timeout: 30_000 });

async function control(method, path, body) {
  const response = await fetch(LAB_URL + path, { method, body: body && JSON.stringify(body) });
  const text = await response.text();
  assert.equal(response.status, 200, text);
  return JSON.parse(text);
}

export const lab = {
  // Registers a script and returns the model that plays it.
  async script(name, rounds, options = {}) {
    await control('POST', `/_script/${name}`, { rounds, ...options });
    return `script:${name}`;
  },
  journal: () => control('GET', '/_journal'),
  clear: () => control('DELETE', '/_journal'),
  async bodies(model) {
    const { entries } = await lab.journal();
    const name = model.replace('script:', '');
    return entries.filter((e) => e.kind === 'request' && e.script === name).map((e) => e.body);
  },
  async runs(tool) {
    return (await lab.journal()).tools[tool]?.started ?? 0;
  },
};

// A round of a script, a call in it, and a tool the client declares.
export const says = (text, calls = [], more = {}) => ({
  reply: { ...(text === null ? {} : { text }), calls, ...more },
});
export const call = (name, args = {}, id) => ({ name, arguments: args, ...(id ? { id } : {}) });
export const tool = (name, properties = {}) => ({
  type: 'function',
  function: {
    name,
    description: name,
    parameters: {
      type: 'object',
      properties: Object.fromEntries(Object.entries(properties).map(([k, type]) => [k, { type }])),
      required: Object.keys(properties),
      additionalProperties: false,
    },
  },
});

// One question; the answer has the same shape either way.
export async function ask(openai, stream, model, messages = HI, more = {}) {
  if (stream) return fold(await openai.chat.completions.create({ model, messages, stream: true, ...more }));
  const whole = await openai.chat.completions.create({ model, messages, ...more });
  const [{ message, finish_reason }] = whole.choices;
  const calls = (message.tool_calls ?? []).map((c) => ({
    id: c.id, name: c.function.name, arguments: c.function.arguments,
  }));
  return { text: message.content ?? '', calls, finish: finish_reason, usage: whole.usage, message };
}

// Joins a stream, and holds it to what every client relies on.
export async function fold(chunks) {
  const answer = { text: '', calls: [], finish: null, usage: undefined };
  const ids = new Set();
  let first = true;
  for await (const chunk of chunks) {
    ids.add(chunk.id);
    if (chunk.usage) {
      assert.equal(answer.usage, undefined, 'usage is told once');
      answer.usage = chunk.usage;
    }
    for (const { delta, finish_reason } of chunk.choices) {
      if (first) assert.equal(delta.role, 'assistant', 'the role goes first');
      first = false;
      answer.text += delta.content ?? '';
      for (const part of delta.tool_calls ?? []) {
        const made = (answer.calls[part.index] ??= { id: '', name: '', arguments: '' });
        made.id ||= part.id ?? '';
        made.name ||= part.function?.name ?? '';
        made.arguments += part.function?.arguments ?? '';
      }
      if (finish_reason) {
        assert.equal(answer.finish, null, 'exactly one finish_reason');
        answer.finish = finish_reason;
      }
    }
  }
  assert.equal(ids.size, 1, 'one id for the whole turn');
  assert.notEqual(answer.finish, null, 'a finish_reason');
  answer.message = { role: 'assistant', content: answer.text || null };
  if (answer.calls.length) {
    answer.message.tool_calls = answer.calls.map(({ id, name, arguments: args }) => ({
      id, type: 'function', function: { name, arguments: args },
    }));
  }
  return answer;
}

// Failures an upstream may have.
export const OUCH = { error: { message: 'ouch', type: 'server_error', param: null, code: 'ouch' } };
export const status = (code, headers = {}) => ({ steps: [{ answer: { status: code, headers, body: OUCH } }] });
const chunk = (delta) => ({
  id: 'c1', object: 'chat.completion.chunk', created: 1, model: 'm',
  choices: [{ index: 0, delta, logprobs: null, finish_reason: null }],
});
export const BEGUN = [chunk({ role: 'assistant', content: '' }), chunk({ content: 'It is ' })];
