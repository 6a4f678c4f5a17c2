// The proxy seen through the AI SDK.
import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, isStepCount, Output, streamText, tool } from 'ai';
import { z } from 'zod';
import { baseURL, BEGUN, call, lab, OUCH, says, status } from './lab.js';

const provider = createOpenAICompatible({ name: 'fanfold', baseURL, apiKey: 'client-key', includeUsage: true });
const silent = createOpenAICompatible({ name: 'fanfold', baseURL, apiKey: 'client-key' });
const structured = createOpenAICompatible({
  name: 'fanfold', baseURL, apiKey: 'client-key', supportsStructuredOutputs: true,
});
beforeEach(() => lab.clear());

// One question; the answer has the same shape either way.
async function ask(stream, model, more = {}) {
  const request = { model: provider.chatModel(model), prompt: 'hi', maxRetries: 0, ...more };
  if (!stream) return generateText(request);
  const errors = [];
  const result = streamText({ ...request, onError: ({ error }) => errors.push(error) });
  let text = '';
  for await (const delta of result.textStream) text += delta;
  if (errors.length) throw errors[0];
  const [finishReason, toolCalls, steps, totalUsage] = await Promise.all([
    result.finishReason, result.toolCalls, result.steps, result.totalUsage,
  ]);
  return { text: steps.at(-1).text, seen: text, finishReason, toolCalls, steps, totalUsage };
}

for (const stream of [true, false]) {
  describe(stream ? 'streamText' : 'generateText', () => {
    const tag = (name) => `ai-${name}-${stream}`;

    test('direct: plain text', async () => {
      const model = await lab.script(tag('plain'), [says('It is sunny, I think.', [], { usage: [3, 4] })]);
      const answer = await ask(stream, model);
      assert.deepEqual([answer.text, answer.finishReason], ['It is sunny, I think.', 'stop']);
      assert.equal(answer.totalUsage.totalTokens, 7);
    });

    test('owned calls are run and never seen', async () => {
      const model = await lab.script(tag('owned'), [
        says(null, [call('get_weather', { city: 'Paris' }), call('get_weather', { city: 'Lima' })]),
        says('both fine'),
      ]);
      const answer = await ask(stream, model);
      assert.deepEqual([answer.text, answer.finishReason, answer.toolCalls], ['both fine', 'stop', []]);
      assert.equal(answer.steps.length, 1);
      assert.equal(answer.totalUsage.totalTokens, 30);
      assert.equal(await lab.runs('get_weather'), 2);
    });

    test('eight calls run at once and their results keep the order', async () => {
      const waits = [800, 700, 600, 500, 400, 300, 200, 100];
      const model = await lab.script(tag('eight'), [says(null, waits.map((ms) => call('slow', { ms }))), says('done')]);
      assert.equal((await ask(stream, model)).text, 'done');
      const { tools } = await lab.journal();
      assert.deepEqual([tools.slow.started, tools.slow.most_at_once], [8, 8]);
      const results = (await lab.bodies(model)).at(-1).messages.slice(-8);
      assert.deepEqual(results.map((r) => Number(JSON.parse(r.content).query.ms)), waits);
    });

    test('three rounds are one step, and the text of each is seen', async () => {
      const model = await lab.script(tag('three'), [
        says('Paris first.', [call('get_weather', { city: 'Paris' })]),
        says('Now Lima.', [call('get_weather', { city: 'Lima' })]),
        says('Both are fine.'),
      ]);
      const answer = await ask(stream, model);
      assert.equal(answer.text, 'Paris first.\n\nNow Lima.\n\nBoth are fine.');
      assert.deepEqual([answer.steps.length, answer.finishReason], [1, 'stop']);
    });

    test('bad calls become results and leave the others alone', async () => {
      const model = await lab.script(tag('bad'), [
        says(null, [
          call('broken'), call('hanging'), call('no_such_tool'), call('get_weather', '{"city": '),
          call('get_weather', { city: 'Lima' }),
        ]),
        says('well'),
      ]);
      assert.equal((await ask(stream, model)).text, 'well');
      const results = (await lab.bodies(model)).at(-1).messages.slice(-5).map((m) => m.content);
      for (const bad of results.slice(0, 4)) assert.match(bad, /^error: /);
      assert.match(results[4], /Lima/);
    });

    test('a structured answer after owned calls', async () => {
      const model = await lab.script(tag('object'), [
        says(null, [call('get_weather', { city: 'Paris' })]), says('{"city":"Paris","celsius":18}'),
      ]);
      const schema = z.object({ city: z.string(), celsius: z.number() });
      const request = { model: structured.chatModel(model), prompt: 'hi', maxRetries: 0, output: Output.object({ schema }) };
      const result = await (stream ? streamText(request) : generateText(request));
      assert.deepEqual(await result.output, { city: 'Paris', celsius: 18 });
    });

    test('usage is told only to who asks', async () => {
      const model = await lab.script(tag('usage'), [
        says(null, [call('get_weather', { city: 'Paris' })], { usage: [100, 7] }), says('fine', [], { usage: [130, 5] }),
      ]);
      assert.equal((await ask(stream, model)).totalUsage.totalTokens, 242);
      const quiet = await ask(stream, model, { model: silent.chatModel(model) });
      assert.equal(quiet.totalUsage.totalTokens, stream ? undefined : 242);
    });

    test('direct: a tool of the client', async () => {
      const model = await lab.script(tag('foreign'), [
        says(null, [call('get_location', {}, 'call_l')]), says('Oslo it is'),
      ]);
      let ran = 0;
      const tools = { get_location: tool({ inputSchema: z.object({}), execute: () => `Oslo ${++ran}` }) };
      const answer = await ask(stream, model, { tools, stopWhen: isStepCount(3) });
      assert.deepEqual([answer.text, answer.steps.length, ran], ['Oslo it is', 2, 1]);
    });

    test('a mixed reply runs each tool where it belongs', async () => {
      const model = await lab.script(tag('mixed'), [
        says(null, [call('get_weather', { city: 'Paris' }, 'call_w'), call('get_location', {}, 'call_l')]),
        says('all known'),
      ]);
      let ran = 0;
      const tools = { get_location: tool({ inputSchema: z.object({}), execute: () => `Oslo ${++ran}` }) };
      const answer = await ask(stream, model, { tools, stopWhen: isStepCount(3) });
      assert.deepEqual([answer.text, answer.steps.length, ran], ['all known', 2, 1]);
      assert.equal(await lab.runs('get_weather'), 1);
      const results = (await lab.bodies(model)).at(-1).messages.slice(-2);
      assert.deepEqual(results.map((m) => m.tool_call_id), ['call_w', 'call_l']);
    });

    test('direct: an upstream refusal raises', async () => {
      const model = await lab.script(tag('400'), [status(400)], { repeat: true });
      await assert.rejects(ask(stream, model), (error) => {
        assert.equal(error.statusCode, 400);
        assert.match(error.message, /ouch/);
        return true;
      });
    });

    test('an upstream that stays broken raises', async () => {
      const model = await lab.script(tag('500'), [status(500)], { repeat: true, advance: 'requests' });
      await assert.rejects(ask(stream, model), (error) => error.statusCode === 502);
    });
  });
}

test('direct: an error in the middle of the stream raises', async () => {
  const model = await lab.script('ai-mid', [{ steps: [{ events: [...BEGUN, OUCH] }] }], { repeat: true });
  await assert.rejects(ask(true, model), /ouch|error/i);
});

for (const end of ['end', 'close', 'reset']) {
  test(`a stream that breaks off raises: ${end}`, async () => {
    const steps = [{ events: BEGUN }, { wait_ms: 50 }, end];
    const model = await lab.script(`ai-cut-${end}`, [{ steps }], { repeat: true });
    await assert.rejects(ask(true, model));
  });
}

for (const end of ['end', 'close', 'reset']) {
  test(`a relayed stream that breaks off raises: ${end}`, async () => {
    const steps = [{ events: BEGUN }, { wait_ms: 50 }, end];
    const model = await lab.script(`ai-relay-${end}`, [{ steps }], { repeat: true });
    await assert.rejects(ask(true, model, { headers: { 'x-fanfold-tools': 'none' } }));
  });
}
